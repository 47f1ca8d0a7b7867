//! Follows the frame heads of one HTTP/2 connection as its bytes come, and says when a client sends
//! more of what is cheap for it and dear for others than an honest one does. h2 tells nobody about
//! PING, SETTINGS, RST_STREAM and the like.
//!
//! Of each frame it reads nine bytes and skips the rest. Time comes in as an argument.

use std::time::Duration;

/// What a client says first; it is no frame.
const PREFACE_BYTES: u32 = 24;
const HEAD_BYTES: usize = 9;
/// The largest payload that ringfence takes: HTTP/2's default, and it announces no other.
pub const FRAME_BYTES_MAX: u32 = 16_384;
/// A rate may be exceeded by as much as comes together in this many seconds: a thousand calls whose
/// deadline passes at once are a thousand resets, and no attack.
pub const BURST_SECONDS: u64 = 10;
/// How many control frames a SETTINGS frame counts for: it may change every stream's window, and the
/// receiver must look at all of them.
const SETTINGS_WEIGHT: u64 = 10;
/// Control frames that a request pays for. An honest client updates two windows, half-closes with an
/// empty DATA and measures the round trip with a PING, so half of it would do.
const EARNED_BY_REQUEST: u64 = 8;
/// Bytes to the client that pay for a control frame. Go's and Java's gRPC clients send a PING for
/// each DATA that they get while they measure how much fits the line, a thousand a second and more,
/// and each DATA with a message in it is about this long. What answers a PING (17 bytes) or SETTINGS
/// (9) pays for a part of the next one only, so a flood does not pay for itself.
const BYTES_PER_EARNED_FRAME: u64 = 64;

const FLAG_END_STREAM: u8 = 0x1;
const FLAG_ACK: u8 = 0x1;
const FLAG_END_HEADERS: u8 = 0x4;
const FLAG_PADDED: u8 = 0x8;

const KIND_DATA: u8 = 0;
const KIND_HEADERS: u8 = 1;
const KIND_RST_STREAM: u8 = 3;
const KIND_SETTINGS: u8 = 4;
const KIND_CONTINUATION: u8 = 9;

/// How much of what a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Frames that carry no request, beyond those that requests and replies pay for.
    pub control_frames_per_second: u32,
    /// RST_STREAM frames: streams opened to be given up (CVE-2023-44487).
    pub resets_per_second: u32,
    /// CONTINUATION frames of one header block (CVE-2024-27316).
    pub continuations: u32,
}

/// Which limit a client broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, DATA without data, and what HTTP/2 does not know.
    Control,
    /// RST_STREAM.
    Resets,
    /// A header block in too many pieces.
    Continuations,
    /// A frame longer than was announced.
    FrameSize,
}

/// Where a connection stands.
#[derive(Debug)]
pub struct FrameFollower {
    limits: FrameLimits,
    at: At,
    /// CONTINUATION frames since HEADERS, while END_HEADERS has not come.
    open_block: Option<u32>,
    /// The last head said END_HEADERS: with its payload a header block is whole.
    ends_block: bool,
    seen_header_block: bool,
    unfinished_since: Option<Duration>,
    control: Allowance,
    resets: Allowance,
    written_bytes: u64,
}

#[derive(Debug)]
enum At {
    Preface { left: u32 },
    Head { bytes: [u8; HEAD_BYTES], filled: usize },
    Payload { left: u32 },
}

const NEXT_HEAD: At = At::Head { bytes: [0; HEAD_BYTES], filled: 0 };

impl FrameFollower {
    /// Follows a connection from its first byte.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            at: At::Preface { left: PREFACE_BYTES },
            open_block: None,
            ends_block: false,
            seen_header_block: false,
            unfinished_since: None,
            control: Allowance::full(limits.control_frames_per_second),
            resets: Allowance::full(limits.resets_per_second),
            written_bytes: 0,
        }
    }

    /// Takes the next bytes from the client. How they are cut into calls makes no difference.
    ///
    /// # Errors
    /// At the first frame that breaks a limit; nothing is followed after it.
    pub fn push(&mut self, bytes: &[u8], now: Duration) -> Result<(), Flood> {
        let mut rest = bytes;
        while let Some((first, behind_first)) = rest.split_first() {
            match &mut self.at {
                At::Preface { left } | At::Payload { left } => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= u32::try_from(skipped).unwrap_or(*left);
                    let done = *left == 0;
                    rest = rest.get(skipped..).unwrap_or_default();
                    if done {
                        self.finish_frame();
                    }
                }
                At::Head { filled: 0, .. } => {
                    self.unfinished_since.get_or_insert(now);
                    if let Some((head, behind)) = rest.split_first_chunk::<HEAD_BYTES>() {
                        rest = behind;
                        self.take_head(*head, now)?;
                    } else {
                        let mut bytes = [0; HEAD_BYTES];
                        bytes.iter_mut().zip(rest).for_each(|(slot, byte)| *slot = *byte);
                        self.at = At::Head { bytes, filled: rest.len() };
                        return Ok(());
                    }
                }
                At::Head { bytes, filled } => {
                    if let Some(slot) = bytes.get_mut(*filled) {
                        *slot = *first;
                    }
                    *filled += 1;
                    rest = behind_first;
                    if *filled == HEAD_BYTES {
                        let head = *bytes;
                        self.take_head(head, now)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes bytes that went to the client.
    pub const fn note_written(&mut self, bytes: u64) {
        self.written_bytes = self.written_bytes.saturating_add(bytes);
    }

    /// Whether one header block has come as a whole.
    #[must_use]
    pub const fn has_seen_header_block(&self) -> bool {
        self.seen_header_block
    }

    /// Since when a frame other than DATA, or a header block, has been waiting for its end. DATA has
    /// the deadline of its call.
    #[must_use]
    pub const fn unfinished_since(&self) -> Option<Duration> {
        self.unfinished_since
    }

    fn take_head(&mut self, head: [u8; HEAD_BYTES], now: Duration) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        if length > FRAME_BYTES_MAX {
            return Err(Flood::FrameSize);
        }
        self.weigh(kind, flags, length, now)?;
        if kind == KIND_DATA && self.open_block.is_none() {
            self.unfinished_since = None;
        }
        self.at = At::Payload { left: length };
        if length == 0 {
            self.finish_frame();
        }
        Ok(())
    }

    /// Requests have bounds of their own; what carries none is counted here. Bytes of DATA cost
    /// nothing.
    fn weigh(&mut self, kind: u8, flags: u8, length: u32, now: Duration) -> Result<(), Flood> {
        match kind {
            KIND_DATA
                if flags & FLAG_PADDED == 0 && (length > 0 || flags & FLAG_END_STREAM > 0) =>
            {
                Ok(())
            }
            KIND_HEADERS => {
                self.control.earn(EARNED_BY_REQUEST);
                self.ends_block = flags & FLAG_END_HEADERS > 0;
                self.open_block = Some(0);
                Ok(())
            }
            KIND_CONTINUATION if self.open_block.is_some() => {
                self.ends_block = flags & FLAG_END_HEADERS > 0;
                let frames = self.open_block.map_or(0, |frames| frames.saturating_add(1));
                self.open_block = Some(frames);
                if frames > self.limits.continuations {
                    return Err(Flood::Continuations);
                }
                Ok(())
            }
            KIND_RST_STREAM if self.resets.take(1, now) => Ok(()),
            KIND_RST_STREAM => Err(Flood::Resets),
            KIND_SETTINGS if flags & FLAG_ACK == 0 => self.take_control(SETTINGS_WEIGHT, now),
            _ => self.take_control(1, now),
        }
    }

    fn take_control(&mut self, weight: u64, now: Duration) -> Result<(), Flood> {
        self.control.earn(self.written_bytes / BYTES_PER_EARNED_FRAME);
        self.written_bytes %= BYTES_PER_EARNED_FRAME;
        if self.control.take(weight, now) { Ok(()) } else { Err(Flood::Control) }
    }

    const fn finish_frame(&mut self) {
        self.at = NEXT_HEAD;
        if self.ends_block {
            self.ends_block = false;
            self.open_block = None;
            self.seen_header_block = true;
        }
        if self.open_block.is_none() {
            self.unfinished_since = None;
        }
    }
}

/// A rate that may be saved up for [`BURST_SECONDS`].
#[derive(Debug)]
struct Allowance {
    per_second: u64,
    /// In millionths of a frame.
    level: u64,
    refilled: Duration,
}

impl Allowance {
    /// One frame, in millionths: a rate per second fills that many of them each microsecond.
    const FRAME: u64 = 1_000_000;

    fn full(per_second: u32) -> Self {
        let per_second = u64::from(per_second);
        let level = per_second.saturating_mul(BURST_SECONDS * Self::FRAME);
        Self { per_second, level, refilled: Duration::ZERO }
    }

    fn fill(&mut self, more: u64) {
        let full = self.per_second.saturating_mul(BURST_SECONDS * Self::FRAME);
        self.level = self.level.saturating_add(more).min(full);
    }

    fn earn(&mut self, frames: u64) {
        self.fill(frames.saturating_mul(Self::FRAME));
    }

    /// Takes that many frames, or none when there are not enough.
    fn take(&mut self, frames: u64, now: Duration) -> bool {
        let passed = now.saturating_sub(self.refilled).as_micros();
        self.refilled = self.refilled.max(now);
        self.fill(u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(self.per_second));
        let left = self.level.checked_sub(frames.saturating_mul(Self::FRAME));
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[cfg(test)]
mod tests;
