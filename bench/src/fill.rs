//! Writes keys before a measurement, so that a real etcd has something to answer with. Measures nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use crate::{Outcome, grpc, load};

/// etcd takes 128 operations in one transaction by default.
const KEYS_PER_CALL: u32 = 100;
const READY_LIMIT: Duration = Duration::from_secs(10);
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the target takes a write, then writes keys 0 up to `keys`; says how many calls that took.
pub fn fill(
    target: &str,
    config: &Arc<ClientConfig>,
    keys: u32,
    value_bytes: usize,
) -> Outcome<u64> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let limit = Instant::now() + READY_LIMIT;
        let mut sender = loop {
            let tried = timeout(CALL_LIMIT, load::connect(target, config)).await;
            match tried.unwrap_or_else(|_| Err(format!("{target}: connecting took too long"))) {
                Ok((sender, _)) => break sender,
                Err(_) if Instant::now() < limit => sleep(Duration::from_millis(50)).await,
                Err(message) => return Err(message),
            }
        };
        let value = vec![b'v'; value_bytes];
        let mut calls = 0;
        for first in (0..keys).step_by(KEYS_PER_CALL as usize) {
            let numbers = first..keys.min(first + KEYS_PER_CALL);
            let body = grpc::fill_request(numbers, &value);
            let called =
                timeout(CALL_LIMIT, load::call(sender, load::template(grpc::TXN_PATH), body));
            sender = called.await.map_err(|_| format!("{target}: filling took too long"))??;
            calls += 1;
        }
        Ok(calls)
    })
}
