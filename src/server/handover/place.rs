//! The file of the unix socket on which ringfence hands over: mode 0600, put in place whole, taken away by whoever put
//! it there and nobody else.
//!
//! It never replaces anything but a socket.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::{ANSWER_PATIENCE, HandoverError};

/// What a socket is called before it stands in its place.
const FRESH: &str = ".new";

/// A socket that listens, not in its place yet.
#[derive(Debug)]
pub(in crate::server) struct Place {
    listener: UnixListener,
    path: PathBuf,
    fresh: PathBuf,
}

/// A socket in its place.
#[derive(Debug)]
pub(in crate::server) struct Standing {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Which file it is: device and number. `None` when another stands there, or is about to.
    identity: Option<(u64, u64)>,
}

/// Whether somebody hands over there.
pub(in crate::server) async fn is_answered(path: &Path) -> bool {
    let connecting = tokio::time::timeout(ANSWER_PATIENCE, UnixStream::connect(path)).await;
    match connecting {
        Ok(Ok(_)) => true,
        // Somebody is there, and busy, or another's.
        Ok(Err(error)) => {
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::PermissionDenied)
        }
        Err(_) => true,
    }
}

impl Place {
    /// Makes the socket beside its place.
    ///
    /// # Errors
    /// When something else stands there, or it cannot be made.
    pub(in crate::server) fn make(path: &Path) -> Result<Self, HandoverError> {
        let fault = |error| HandoverError::Place { path: path.to_owned(), error };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(FRESH);
        let fresh = PathBuf::from(fresh);
        is_free(path).map_err(fault)?;
        if is_free(&fresh).map_err(fault)? {
            fs::remove_file(&fresh).map_err(fault)?;
        }
        let listener = UnixListener::bind(&fresh).map_err(fault)?;
        let place = Self { listener, path: path.to_owned(), fresh };
        // Who connects before it has its mode is asked who it is all the same.
        fs::set_permissions(&place.fresh, Permissions::from_mode(0o600)).map_err(fault)?;
        Ok(place)
    }

    /// Puts it in its place, over one that was there.
    ///
    /// # Errors
    /// When that cannot be.
    pub(in crate::server) fn stand(self) -> Result<Standing, HandoverError> {
        let fault = |error| HandoverError::Place { path: self.path.clone(), error };
        let metadata = fs::symlink_metadata(&self.fresh).map_err(fault)?;
        fs::rename(&self.fresh, &self.path).map_err(fault)?;
        let identity = Some((metadata.dev(), metadata.ino()));
        Ok(Standing { listener: self.listener, path: self.path, identity })
    }
}

/// Whether a socket is there that may be replaced; an error when it is something else.
fn is_free(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => {
            let why = format!("`{}` is there and is no socket", path.display());
            Err(io::Error::new(ErrorKind::AlreadyExists, why))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Standing {
    /// Another ringfence puts its own there.
    pub(super) const fn leave(&mut self) {
        self.identity = None;
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let metadata = fs::symlink_metadata(&self.path).ok();
        let there = metadata.map(|metadata| (metadata.dev(), metadata.ino()));
        if there.is_some() && there == self.identity {
            // One that stays is replaced by the next start.
            drop(fs::remove_file(&self.path));
        }
    }
}
