//! Which endpoints are down, as all cores together found out. While one is down, every core tries it
//! many times a second: what is logged is the change, and the others for debugging.

use std::sync::atomic::{AtomicBool, Ordering};

use super::connection::ConnectError;
use super::{Config, Endpoint};

/// One mark per endpoint, in their order.
#[derive(Debug)]
pub struct Reachability {
    down: Vec<AtomicBool>,
}

impl Reachability {
    /// Everything counts as reachable until it is tried.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { down: config.endpoints.iter().map(|_| AtomicBool::new(false)).collect() }
    }

    /// Notes what came of a try to connect to the endpoint at that position.
    pub(super) fn note(&self, position: usize, endpoint: &Endpoint, error: Option<&ConnectError>) {
        let Some(down) = self.down.get(position) else { return };
        let was_down = down.swap(error.is_some(), Ordering::Relaxed);
        match error {
            Some(error) if was_down => tracing::debug!(%endpoint, %error, "still unreachable"),
            Some(error) => {
                tracing::warn!(%endpoint, %error, "etcd cannot be reached; not said again until it can");
            }
            None if was_down => tracing::info!(%endpoint, "etcd can be reached again"),
            None => {}
        }
    }
}
