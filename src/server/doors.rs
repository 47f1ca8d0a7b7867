//! The ways in: the sockets that are listened on, and the one on which a newer ringfence takes them over. They are
//! opened at the start, before anything else is begun.
//!
//! A start that fails here must leave a ringfence that runs as it was.

use super::ServeError;
use super::handover::{Giver, HandoverError, Place, Taken, is_answered};
use super::sockets::{Copies, Passed, Sockets};
use crate::config::Config;

/// What was opened.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) sockets: Sockets,
    pub(super) next: Next,
}

/// What is left to do when everything serves.
#[derive(Debug)]
pub(super) struct Next {
    /// The one whose place this one takes.
    older: Option<Taken>,
    /// Where a newer one may take this one's.
    upgrade: Option<(Place, Copies)>,
}

impl Doors {
    /// Opens them: those that were passed, those of an older ringfence, and what is left of the config.
    ///
    /// # Errors
    /// When one cannot be opened, or a ringfence runs whose place was not asked for.
    pub(super) async fn open(
        config: &Config,
        mut passed: Vec<Passed>,
        take_over: bool,
    ) -> Result<Self, ServeError> {
        let path = config.upgrade_socket.as_deref();
        let mut older = match path {
            None if take_over => return Err(HandoverError::NotConfigured.into()),
            Some(path) if take_over => Some(Taken::take(path).await?),
            Some(path) if is_answered(path).await => {
                return Err(HandoverError::Runs(path.to_owned()).into());
            }
            None | Some(_) => None,
        };
        if let Some(older) = &mut older {
            passed.append(&mut older.sockets);
        }
        let sockets = Sockets::open(passed, &config.listen, config.admin_listen).await?;
        let upgrade = match path {
            Some(path) => Some((Place::make(path)?, sockets.copies()?)),
            None => None,
        };
        Ok(Self { sockets, next: Next { older, upgrade } })
    }
}

impl Next {
    /// Everything serves: the older one may end, and a newer one may come.
    ///
    /// # Errors
    /// When the older one goes on; then this one has to end.
    pub(super) async fn serves(self) -> Result<Option<Giver>, ServeError> {
        let takes_over = self.older.is_some();
        if let Some(older) = self.older {
            let pid = older.pid;
            older.serves().await?;
            tracing::info!(older = pid, "the older ringfence ends; this one has its place");
        }
        let Some((place, copies)) = self.upgrade else { return Ok(None) };
        let standing = place.stand().map_err(ServeError::from);
        match standing.and_then(|standing| Ok(Giver::new(standing, copies)?)) {
            Ok(giver) => Ok(Some(giver)),
            // The older one is gone by now: somebody has to serve.
            Err(error) if takes_over => {
                tracing::error!(%error, "nobody can take over from this ringfence");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
