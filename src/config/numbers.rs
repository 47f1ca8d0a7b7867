//! Numbers as they are written -> bounds and times.

use std::time::Duration;

use super::Reload;
use super::raw::{RawLimits, RawReload};
use crate::proxy::Limits;

pub(super) fn limits(raw: &RawLimits) -> Limits {
    let small = |value| u32::try_from(value).unwrap_or(u32::MAX);
    Limits {
        connections: number(raw.connections),
        connections_per_source: number(raw.connections_per_source),
        pending_handshakes: number(raw.pending_handshakes),
        handshake_timeout: Duration::from_secs(raw.handshake_timeout_seconds),
        first_request_timeout: Duration::from_secs(raw.first_request_timeout_seconds),
        header_timeout: Duration::from_secs(raw.header_timeout_seconds),
        idle_timeout: unless_zero(raw.idle_timeout_seconds),
        lifetime: unless_zero(raw.lifetime_seconds),
        control_frames_per_second: small(raw.control_frames_per_second),
        resets_per_second: small(raw.resets_per_second),
        streams_per_connection: small(raw.streams_per_connection),
        header_list_bytes: small(raw.header_list_bytes),
        request_bytes: number(raw.request_bytes),
        calls_per_principal: small(raw.calls_per_principal),
        streams_per_principal: small(raw.streams_per_principal),
        watches_per_principal: small(raw.watches_per_principal),
        requests_per_second_per_principal: raw.requests_per_second_per_principal,
        bytes_per_second_per_principal: raw.bytes_per_second_per_principal,
        reply_bytes: raw.reply_bytes,
        request_bytes_per_principal: number(raw.request_bytes_per_principal),
        call_timeout: Duration::from_secs(raw.call_timeout_seconds),
        drain_timeout: Duration::from_secs(raw.drain_timeout_seconds),
    }
}

pub(super) const fn reload(raw: &RawReload) -> Reload {
    Reload {
        watches_files: raw.watch_files,
        every: unless_zero(raw.every_seconds),
        pair_wait: Duration::from_secs(raw.pair_wait_seconds),
    }
}

/// 0 stands for a limit that is off.
pub(super) const fn unless_zero(seconds: u64) -> Option<Duration> {
    if seconds > 0 { Some(Duration::from_secs(seconds)) } else { None }
}

pub(super) fn number(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// 0 is one thread per core of the machine.
pub(super) fn cores(asked: u64) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        asked => number(asked),
    }
}
