//! Opens the log: closes what killed processes left open, begins a chain of its own, and makes its first file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::chain::Beginning;
use super::folder::{FileError, Folder, FolderLock, Segments as _, fault};
use super::log::Opened;
use super::reservation::{self, Reservation};
use super::seal::Sealer;
use super::shipping::Shipping;
use super::{Config, earlier, folder};
use crate::chain::ChainId;
use crate::sink::{self, To};

/// A log that can be written, and how many records its process hands out.
pub(super) fn open(
    config: &Config,
    now: Duration,
    random: [u8; 8],
) -> Result<(Opened<Folder>, Reservation), FileError> {
    let directory: &PathBuf = &config.directory;
    folder::make(directory)?;
    // Before anything is done to the log: a start that fails must not have closed the chains of others.
    open_files(&config.sinks)?;
    // Two that begin at once must not take the same epoch, nor close the same chain.
    let _lock = FolderLock::take(directory)?;
    let chain = ChainId::new(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), random);
    let earlier = earlier::look(directory, chain, now)?;
    let epoch = earlier.epoch.saturating_add(1);
    let seal = config.seal.as_ref().map(|seal| {
        let no_key = || std::io::Error::other("the system gives no randomness for a key");
        Sealer::new(&seal.key, chain, epoch, seal.every).ok_or_else(|| fault(directory)(no_key()))
    });
    let (sealer, key) = seal.transpose()?.unzip();
    let reserved = directory.join(reservation::file_name(chain));
    let reservation = Reservation::new(reserved.clone()).map_err(fault(&reserved))?;
    let mut segments = Folder::new(directory.clone(), chain);
    let disk = segments.next().map_err(fault(directory))?;
    earlier.forget_reservations();
    let beginning = Arc::new(Beginning { chain, epoch, key, after: earlier.after });
    let path = segments.path();
    let rotate = config.rotate;
    let (shipping, tidy) = (Shipping::default(), None);
    let opened = Opened { segments, disk, path, beginning, sealer, shipping, rotate, tidy };
    Ok((opened, reservation))
}

/// What cannot be begun is a mistake of now, not a failure of later.
fn open_files(sinks: &[sink::Config]) -> Result<(), FileError> {
    for sink in sinks {
        if let To::File(path) = &sink.to {
            let fault = |error: std::io::Error| {
                let why = format!("the sink `{}`: {error}", sink.name);
                fault(path)(std::io::Error::new(error.kind(), why))
            };
            drop(sink::open(path).map_err(fault)?);
            if !sink::may_take_records(path) {
                return Err(fault(std::io::Error::other("it holds something else than records")));
            }
        }
    }
    Ok(())
}
