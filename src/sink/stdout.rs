//! Standard output, one line a record, as the file has them. Nothing else of `serve` goes there.

use std::io::Write as _;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::queue::Batch;
use super::worker::Fault;

/// A write to a pipe that nobody reads cannot be given up: it is waited for again.
#[derive(Debug, Default)]
pub(super) struct Stdout {
    writing: Option<JoinHandle<std::io::Result<()>>>,
}

impl Stdout {
    pub(super) async fn send(&mut self, batches: &[Arc<Batch>]) -> Result<(), Fault> {
        let writing = self.writing.get_or_insert_with(|| {
            let batches: Vec<Arc<Batch>> = batches.to_vec();
            tokio::task::spawn_blocking(move || {
                let mut stdout = std::io::stdout().lock();
                batches.iter().try_for_each(|batch| stdout.write_all(&batch.lines))?;
                stdout.flush()
            })
        });
        let written = writing.await;
        self.writing = None;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Fault::Away(format!("standard output: {error}"))),
            Err(_) => Err(Fault::Away("standard output: the write ended early".to_owned())),
        }
    }
}
