//! Standard output, and a file of this machine: one line a record, as the log has them. Nothing else of `serve` goes to
//! standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

use super::worker::Fault;
use crate::chain::SegmentName;

/// How every line of a log begins.
const LINE_BEGINS: &[u8] = b"{\"v\":";

/// A write to a pipe that nobody reads, or to a disk that is away, cannot be given up: it is waited for again.
#[derive(Debug)]
pub(super) struct Local {
    /// Not here while it is written to.
    place: Option<Place>,
    writing: Option<JoinHandle<(Place, io::Result<()>)>>,
}

#[derive(Debug)]
enum Place {
    /// What was begun is gone on with: a pipe cannot take it back.
    Stdout { begun: Begun, file: Option<File> },
    File {
        path: PathBuf,
        /// And how long it was when it was written last.
        file: Option<(File, u64)>,
    },
}

/// Lines that were not written to their end.
#[derive(Debug, Default)]
struct Begun {
    lines: Vec<u8>,
    written: usize,
}

impl Local {
    pub(super) fn stdout() -> Self {
        let place = Place::Stdout { begun: Begun::default(), file: None };
        Self { place: Some(place), writing: None }
    }

    pub(super) const fn file(path: PathBuf) -> Self {
        let place = Place::File { path, file: None };
        Self { place: Some(place), writing: None }
    }

    /// After a failure it must be given the same lines again, until it has them.
    pub(super) async fn send(&mut self, lines: &[&[u8]]) -> Result<(), Fault> {
        if let Some(mut place) = self.place.take() {
            let bytes = lines.iter().map(|line| line.len() + 1).sum();
            let mut joined = Vec::with_capacity(bytes);
            for line in lines {
                joined.extend_from_slice(line);
                joined.push(b'\n');
            }
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let written = place.write(joined);
                (place, written)
            }));
        }
        let gone = || Fault::Away("the thread that writes is gone".to_owned());
        let writing = self.writing.as_mut().ok_or_else(gone)?;
        let ended = writing.await;
        self.writing = None;
        let (place, written) = ended.map_err(|_| gone())?;
        let fault = |error| Fault::Away(format!("{}: {error}", place.name()));
        let written = written.map_err(fault);
        self.place = Some(place);
        written
    }
}

impl Place {
    fn name(&self) -> String {
        match self {
            Self::Stdout { .. } => "standard output".to_owned(),
            Self::File { path, .. } => format!("`{}`", path.display()),
        }
    }

    fn write(&mut self, lines: Vec<u8>) -> io::Result<()> {
        match self {
            Self::Stdout { begun, file } => {
                // Not through the standard library's buffer, which says of a failure not how far it came. One copy of
                // the descriptor for good: there may be none left when it is needed.
                let stdout = match file.take() {
                    Some(file) => file,
                    None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
                };
                begun.write(lines, file.insert(stdout))
            }
            Self::File { path, file } => {
                let mut opened = match file.take() {
                    // What was in it is gone; the next try makes another.
                    Some((opened, _)) if !is_at(path, &opened) => {
                        return Err(io::Error::other("it was removed or replaced"));
                    }
                    // Whoever may write there, too, must not have the next checkpoint read as the end of another line.
                    Some((opened, length)) if opened.metadata()?.len() == length => opened,
                    Some(_) | None => open_behind_a_line(path)?,
                };
                opened.write_all(&lines)?;
                opened.sync_data()?;
                let length = opened.metadata()?.len();
                // After a failure it is opened anew: it may be another one by then.
                *file = Some((opened, length));
                Ok(())
            }
        }
    }
}

impl Begun {
    /// Goes on with what was begun, or begins with these lines.
    fn write(&mut self, lines: Vec<u8>, mut to: impl io::Write) -> io::Result<()> {
        if self.lines.is_empty() {
            *self = Self { lines, written: 0 };
        }
        while let Some(rest) = self.lines.get(self.written..).filter(|rest| !rest.is_empty()) {
            match to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        *self = Self::default();
        Ok(())
    }
}

fn is_at(path: &Path, opened: &File) -> bool {
    let (Ok(there), Ok(opened)) = (path.metadata(), opened.metadata()) else { return false };
    (there.dev(), there.ino()) == (opened.dev(), opened.ino())
}

/// A write that failed, of this process or an earlier one, may have left half a line: it gets an end.
fn open_behind_a_line(path: &Path) -> io::Result<File> {
    let mut file = open(path)?;
    if !ends_in_a_line(path, file.metadata()?.len()) {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// What may be written and not read gets an empty line at worst.
fn ends_in_a_line(path: &Path, length: u64) -> bool {
    let Some(before) = length.checked_sub(1) else { return true };
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, before));
    read.is_ok() && last == *b"\n"
}

/// Opens a file that only grows, readable by nobody else.
///
/// # Errors
/// When that cannot be.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Whether lines may be appended to a file: it is empty, cannot be read, or begins as a line of a log does, and is not
/// named like a file of a log itself. Another one would be written into.
#[must_use]
pub fn may_take_records(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| name.parse::<SegmentName>().is_ok()) {
        return false;
    }
    let mut begins = [0; LINE_BEGINS.len()];
    let read = File::open(path).and_then(|file| file.read_at(&mut begins, 0));
    // What may be appended to and not read is taken: nothing of it can be given away by mistake.
    let Ok(read) = read else { return true };
    begins.get(..read).is_some_and(|begins| LINE_BEGINS.starts_with(begins))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sink::{Batch, Config, Lines, Sink, To};

    fn batch(line: &[u8]) -> Arc<Batch> {
        let mut batch = Batch::default();
        batch.push(line);
        Arc::new(batch)
    }

    /// A pipe with room for so many bytes at a time, which then says that it is full.
    struct Small(Vec<u8>, usize);

    impl io::Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = std::mem::take(&mut self.1).min(bytes.len());
            self.0.extend_from_slice(&bytes[..room]);
            if room == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(room) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The attack: what a full pipe took half of is glued to its own beginning, and counts as taken.
    #[test]
    fn what_a_pipe_took_half_of_is_gone_on_with() {
        let (mut begun, mut pipe) = (Begun::default(), Small(Vec::new(), 0));
        let lines = b"{\"seq\":1}\n{\"seq\":2}\n";
        let tries = std::iter::repeat_with(|| {
            pipe.1 = 7;
            begun.write(lines.to_vec(), &mut pipe)
        });
        assert_eq!(tries.take_while(Result::is_err).count(), 2);
        pipe.1 = 100;
        begun.write(b"{\"seq\":3}\n".to_vec(), &mut pipe).unwrap();
        assert_eq!(pipe.0, [&lines[..], b"{\"seq\":3}\n"].concat());
    }

    fn sink(path: &Path) -> Sink {
        let config = Config {
            name: "witness".into(),
            required: false,
            deadline: Duration::from_secs(1),
            queue_bytes: 250_000,
            line_bytes: usize::MAX,
            lines: Lines::Checkpoints,
            to: To::File(path.to_owned()),
        };
        Sink::start(&config, || {}).unwrap()
    }

    fn fails_with(sink: &Sink, expected: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !sink.handle().failure().is_some_and(|why| why.contains(expected)) {
            assert!(Instant::now() < until, "{:?}", sink.handle().failure());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_full_disk_and_a_silent_one_are_failures_and_what_has_no_room_is_counted() {
        let mut full = sink(Path::new("/dev/full"));
        full.push(&batch(b"{}\n"));
        fails_with(&full, "`/dev/full`: No space left on device");
        assert_eq!(full.handle().counts(), [0, 0, 0]);
        // A pipe that nobody reads is a disk that does not answer.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut silent = sink(&path);
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let line = [&[b' '; 100_000][..], b"\n"].concat();
        for _ in 0..4 {
            silent.push(&batch(&line));
        }
        fails_with(&silent, "it has not answered for 1 seconds");
        assert_eq!(silent.take_lost().records, 2);
    }

    #[test]
    fn what_was_torn_does_not_tear_what_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("witness");
        std::fs::write(&path, "{\"half\":").unwrap();
        let mut place = Place::File { path: path.clone(), file: None };
        place.write(b"{}\n".to_vec()).unwrap();
        place.write(b"[]\n".to_vec()).unwrap();
        let mut later = Place::File { path: path.clone(), file: None };
        later.write(b"{}\n".to_vec()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\":\n{}\n[]\n{}\n");
        // The attack: who may append leaves half a line while the file is open.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"half\":").unwrap();
        later.write(b"[]\n".to_vec()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("{\"half\":\n[]\n"));
        // One that was removed is told, once.
        std::fs::remove_file(&path).unwrap();
        let told = later.write(b"{}\n".to_vec()).unwrap_err().to_string();
        assert_eq!(told, "it was removed or replaced");
        later.write(b"{}\n".to_vec()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
    }
}
