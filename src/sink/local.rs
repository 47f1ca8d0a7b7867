//! Standard output, and a file of this machine: one line a record, as the log has them. Nothing else of `serve` goes to
//! standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::queue::Batch;
use super::worker::Fault;

/// How every line of a log begins.
const LINE_BEGINS: &[u8] = b"{\"v\":";

/// A write to a pipe that nobody reads, or to a disk that is away, cannot be given up: it is waited for again.
#[derive(Debug)]
pub(super) struct Local {
    place: Option<Place>,
    writing: Option<JoinHandle<(Place, io::Result<()>)>>,
}

#[derive(Debug)]
enum Place {
    Stdout,
    File { path: PathBuf, file: Option<File> },
}

impl Local {
    pub(super) const fn stdout() -> Self {
        Self { place: Some(Place::Stdout), writing: None }
    }

    pub(super) const fn file(path: PathBuf) -> Self {
        let place = Place::File { path, file: None };
        Self { place: Some(place), writing: None }
    }

    pub(super) async fn send(&mut self, batches: &[Arc<Batch>]) -> Result<(), Fault> {
        if let Some(mut place) = self.place.take() {
            let batches: Vec<Arc<Batch>> = batches.to_vec();
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let written = place.write(&batches);
                (place, written)
            }));
        }
        let gone = || Fault::Away("the thread that writes is gone".to_owned());
        let writing = self.writing.as_mut().ok_or_else(gone)?;
        let (place, written) = writing.await.map_err(|_| gone())?;
        let fault = |error| Fault::Away(format!("{}: {error}", place.name()));
        let written = written.map_err(fault);
        (self.place, self.writing) = (Some(place), None);
        written
    }
}

impl Place {
    fn name(&self) -> String {
        match self {
            Self::Stdout => "standard output".to_owned(),
            Self::File { path, .. } => format!("`{}`", path.display()),
        }
    }

    fn write(&mut self, batches: &[Arc<Batch>]) -> io::Result<()> {
        let lines = || batches.iter().map(|batch| batch.lines.as_slice());
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                lines().try_for_each(|lines| stdout.write_all(lines))?;
                stdout.flush()
            }
            Self::File { path, file } => {
                let mut opened = match file.take() {
                    Some(file) => file,
                    None => open_behind_a_line(path)?,
                };
                lines().try_for_each(|lines| opened.write_all(lines))?;
                opened.sync_data()?;
                // After a failure it is opened anew: it may be another one by then.
                *file = Some(opened);
                Ok(())
            }
        }
    }
}

/// A write that failed, of this process or an earlier one, may have left half a line: it gets an end.
fn open_behind_a_line(path: &Path) -> io::Result<File> {
    let mut file = open(path)?;
    let mut last = [b'\n'];
    if let Some(before) = file.metadata()?.len().checked_sub(1) {
        File::open(path)?.read_exact_at(&mut last, before)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Opens a file that only grows, readable by nobody else.
///
/// # Errors
/// When that cannot be.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Whether a file is empty, or begins as the lines of a log do: another one must not be written into.
#[must_use]
pub fn holds_records(path: &Path) -> bool {
    let mut begins = [0; LINE_BEGINS.len()];
    let read = File::open(path).and_then(|file| file.read_at(&mut begins, 0));
    // What may be written and not read says nothing of what it holds.
    let begins = read.ok().and_then(|read| begins.get(..read));
    begins.is_some_and(|begins| LINE_BEGINS.starts_with(begins))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sink::{Config, Lines, Sink, To};

    fn batch(line: &[u8]) -> Vec<Arc<Batch>> {
        let mut batch = Batch::default();
        batch.push(line);
        vec![Arc::new(batch)]
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
        full.push(&batch(b"{}\n")[0]);
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
            silent.push(&batch(&line)[0]);
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
        place.write(&batch(b"{}\n")).unwrap();
        place.write(&batch(b"[]\n")).unwrap();
        let mut later = Place::File { path: path.clone(), file: None };
        later.write(&batch(b"{}\n")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\":\n{}\n[]\n{}\n");
    }
}
