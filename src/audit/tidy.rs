//! Closed files of the log: compressed, and removed when they are old or many. A thread of its own, which the
//! writer never waits for. It leaves alone what another process writes, and says in the log what it removes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};

use super::Retention;
use super::chain::ChainEvent;
use super::earlier::is_closed;
use super::event::{Event, Record};
use super::folder::{FolderLock, sync};
use super::writer::Shared;
use crate::chain::{ChainId, LineHash, SegmentName};
use crate::{clock, regular_file};

/// Files become old also when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// A file that was just made may not be locked yet.
const SETTLED: Duration = Duration::from_secs(2);
/// How long the log may take to keep the record of a removal; without it nothing is removed.
const RECORD_PATIENCE: Duration = Duration::from_secs(60);
/// A temporary file that was not written to for so long is nobody's.
const ABANDONED: Duration = Duration::from_secs(600);
const LEVEL: i32 = 3;
const TEMPORARY: &str = ".tmp";
const READ_BYTES: usize = 256 << 10;

/// Wakes the thread, and ends it when it is dropped.
#[derive(Debug)]
pub(super) struct Tidy(SyncSender<()>);

impl Tidy {
    /// Starts the thread; it looks around once at its beginning.
    pub(super) fn start(
        directory: PathBuf,
        retention: Retention,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let (waking, woken) = sync_channel(1);
        std::thread::Builder::new().name("audit-tidy".to_owned()).spawn(move || {
            loop {
                if let Err(error) = tidy(&directory, &retention, &shared, SETTLED) {
                    tracing::warn!(%error, "old files of the audit log could not be tidied");
                }
                match woken.recv_timeout(LOOK_EVERY) {
                    // The file that was just closed has to settle.
                    Ok(()) => std::thread::sleep(2 * SETTLED),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self(waking))
    }

    pub(super) fn wake(&self) {
        // One that is on its way is enough.
        let _is_under_way = self.0.try_send(());
    }
}

/// Files in the order of their chains; of two forms of one, the one that is not compressed first.
type FileKey = (ChainId, u32, bool);

/// One closed file.
struct Closed {
    name: SegmentName,
    path: PathBuf,
    bytes: u64,
    /// Locked as long as it is handled, so that nobody opens it as a writer.
    _file: File,
    modified: Duration,
}

fn tidy(
    directory: &Path,
    retention: &Retention,
    shared: &Arc<Shared>,
    settled: Duration,
) -> io::Result<()> {
    let mut closed = BTreeMap::new();
    let lock = || FolderLock::take(directory).map_err(|fault| fault.error);
    // Whoever begins meanwhile waits for this, and not for what takes long.
    let looking = lock()?;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("audit-") && name.ends_with(TEMPORARY) {
            // Another process that shares the folder may be writing it.
            if std::fs::metadata(&path)?.modified()?.elapsed().is_ok_and(|age| age > ABANDONED) {
                std::fs::remove_file(&path)?;
            }
        } else if let Ok(name) = name.parse::<SegmentName>()
            && let Some(found) = closed_file(name, &path, settled)?
        {
            closed.insert((name.chain, name.number, name.compressed), found);
        }
    }
    leave_open_chains(&mut closed)?;
    drop(looking);
    let mut kept = Vec::new();
    for (_, file) in closed {
        if retention.compress && !file.name.compressed {
            let name = SegmentName { compressed: true, ..file.name };
            let path = directory.join(name.to_string());
            let temporary = compress(&file.path, &path)?;
            let _replacing = lock()?;
            std::fs::rename(&temporary, &path)?;
            sync(directory)?;
            std::fs::remove_file(&file.path)?;
            let bytes = std::fs::metadata(&path)?.len();
            kept.push(Closed { name, path, bytes, ..file });
        } else {
            kept.push(file);
        }
    }
    kept.dedup_by_key(|file| (file.name.chain, file.name.number));
    remove(directory, kept, retention, shared)
}

/// The file, unless somebody writes it or may be about to.
fn closed_file(name: SegmentName, path: &Path, settled: Duration) -> io::Result<Option<Closed>> {
    let file = regular_file::open(path)?;
    let metadata = file.metadata()?;
    let modified = metadata.modified()?;
    let is_settled = modified.elapsed().is_ok_and(|age| age >= settled);
    if (!name.compressed && !is_settled) || file.try_lock().is_err() {
        return Ok(None);
    }
    let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let path = path.to_owned();
    Ok(Some(Closed { name, path, bytes: metadata.len(), _file: file, modified }))
}

/// A chain whose process was killed is closed by the next that begins; until then its last file stays as it is.
fn leave_open_chains(closed: &mut BTreeMap<FileKey, Closed>) -> io::Result<()> {
    let mut last: BTreeMap<ChainId, FileKey> = BTreeMap::new();
    for key in closed.keys() {
        last.insert(key.0, *key);
    }
    for key in last.values() {
        let Some(file) = closed.get(key).filter(|file| !file.name.compressed) else { continue };
        if !is_closed(&file.path)? && !has_successor(file) {
            closed.remove(key);
        }
    }
    Ok(())
}

/// Whether the chain went on in another file, which its process may have locked.
fn has_successor(file: &Closed) -> bool {
    let next = SegmentName { number: file.name.number.saturating_add(1), ..file.name };
    file.path.with_file_name(next.to_string()).exists()
}

/// Under a temporary name first; what was written must read back as the same bytes.
fn compress(from: &Path, to: &Path) -> io::Result<PathBuf> {
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        let mut encoder = zstd::Encoder::new(file, LEVEL)?;
        encoder.include_checksum(true)?;
        let mut original = File::open(from)?;
        let mut digest = Context::new(&SHA256);
        copy(&mut original, |bytes| {
            digest.update(bytes);
            encoder.write_all(bytes)
        })?;
        encoder.finish()?.sync_all()?;
        let mut again = Context::new(&SHA256);
        copy(&mut zstd::Decoder::new(File::open(&temporary)?)?, |bytes| {
            again.update(bytes);
            Ok(())
        })?;
        if digest.finish().as_ref() != again.finish().as_ref() {
            return Err(io::Error::other("the compressed file does not read back the same"));
        }
        Ok(())
    })();
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            drop(std::fs::remove_file(&temporary));
            Err(error)
        }
    }
}

fn copy(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to(buffer.get(..count).unwrap_or_default())?,
        }
    }
}

/// Removes the oldest until the rest is within the bounds. Each removal is in the log, on disk, before it is
/// done.
fn remove(
    directory: &Path,
    mut files: Vec<Closed>,
    retention: &Retention,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let now = clock::since_epoch();
    let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
    files.reverse();
    while let Some(oldest) = files.last() {
        let many = retention.files.is_some_and(|most| files.len() as u64 > u64::from(most));
        let large = retention.bytes.is_some_and(|most| bytes > most);
        let old = retention.age.is_some_and(|most| now.saturating_sub(oldest.modified) > most);
        if !(many || large || old) {
            return Ok(());
        }
        let (sequence, hash) = last_line(oldest)?;
        let SegmentName { chain, number: segment, .. } = oldest.name;
        let event = ChainEvent::SegmentRemoved { chain, segment, sequence, hash };
        let record = Record { time: clock::since_epoch(), event: Event::Chain(event) };
        if !is_kept(shared, &record) {
            return Err(io::Error::other(
                "the log takes no record of a removal; nothing is removed",
            ));
        }
        std::fs::remove_file(&oldest.path)?;
        sync(directory)?;
        bytes = bytes.saturating_sub(oldest.bytes);
        files.pop();
    }
    Ok(())
}

/// Whether the record is on disk within the time there is.
fn is_kept(shared: &Arc<Shared>, record: &Record<'_>) -> bool {
    let taken = shared.push(record, None, true);
    let started = Instant::now();
    while shared.synced.load(Ordering::Acquire) < taken {
        if started.elapsed() > RECORD_PATIENCE || shared.is_closing() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// The number and hash of the last line.
fn last_line(file: &Closed) -> io::Result<(u64, LineHash)> {
    let original = File::open(&file.path)?;
    let mut reader: Box<dyn Read> = if file.name.compressed {
        Box::new(zstd::Decoder::new(original)?)
    } else {
        Box::new(original)
    };
    let (mut line, mut last) = (Vec::new(), Vec::new());
    copy(&mut reader, |bytes| {
        let mut rest = bytes;
        while let Some(newline) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at_checked(newline).unwrap_or_default();
            line.extend_from_slice(head);
            std::mem::swap(&mut line, &mut last);
            line.clear();
            rest = tail.get(1..).unwrap_or_default();
        }
        line.extend_from_slice(rest);
        Ok(())
    })?;
    let record: Option<serde_json::Value> = serde_json::from_slice(&last).ok();
    let sequence = record.and_then(|record| record.get("seq")?.as_u64()).unwrap_or(0);
    Ok((sequence, LineHash::of(&last)))
}
