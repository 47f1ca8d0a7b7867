//! A walk over the gRPC messages of a reply, fed chunk by chunk, that shows the numbers in them. It
//! keeps no bytes and looks into nothing but the header; contents it does not know it passes over.

use super::MessagePosition;

const GRPC_PREFIX_BYTES: u8 = 5;
/// `header` is field 1 of every response that has one (rpc.proto).
const HEADER_FIELD: u64 = 1;

/// What the walk comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A number in the response's header.
    Header {
        field: u64,
        value: u64,
    },
    /// A number of the response itself.
    Number {
        field: u64,
        value: u64,
    },
    MessageEnd,
}

/// Where the walk stands.
#[derive(Debug)]
pub(super) struct Scan {
    /// Bytes of the gRPC prefix that have been read, and the length they say.
    prefix_bytes: u8,
    length: u32,
    /// Bytes of the message that are still to come.
    message_left: u64,
    /// Bytes of the header message that are still to come; `None` outside the header.
    header_left: Option<u64>,
    step: Step,
    varint: u64,
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Tag,
    /// The value of a varint field.
    Number(u64),
    /// The length of a length-delimited field.
    Length(u64),
    /// Content that is passed over.
    Skip(u64),
    /// The rest of this message cannot be followed.
    Lost,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            prefix_bytes: 0,
            length: 0,
            message_left: 0,
            header_left: None,
            step: Step::Tag,
            varint: 0,
            shift: 0,
        }
    }
}

impl Scan {
    pub(super) const fn position(&self) -> MessagePosition {
        match self.prefix_bytes {
            0 => MessagePosition::Between,
            GRPC_PREFIX_BYTES => MessagePosition::Message(self.message_left),
            bytes => MessagePosition::Prefix(bytes, self.length),
        }
    }

    /// Whether a message has just ended, or none has begun.
    pub(super) const fn is_between_messages(&self) -> bool {
        self.prefix_bytes == 0
    }

    pub(super) fn push(&mut self, mut chunk: &[u8], found: &mut impl FnMut(Found)) {
        while let Some((byte, rest)) = chunk.split_first() {
            if self.prefix_bytes < GRPC_PREFIX_BYTES {
                chunk = rest;
                self.prefix_byte(*byte, found);
                continue;
            }
            let passed = match self.step {
                Step::Skip(left) => passable(left.min(self.message_left), chunk),
                Step::Lost => passable(self.message_left, chunk),
                Step::Tag | Step::Number(_) | Step::Length(_) => 1,
            };
            chunk = chunk.get(passed..).unwrap_or_default();
            self.pass(passed as u64, *byte, found);
        }
    }

    fn prefix_byte(&mut self, byte: u8, found: &mut impl FnMut(Found)) {
        if self.prefix_bytes > 0 {
            self.length = self.length << 8 | u32::from(byte);
        }
        self.prefix_bytes += 1;
        if self.prefix_bytes == GRPC_PREFIX_BYTES {
            self.message_left = u64::from(self.length);
            self.end_if_over(found);
        }
    }

    fn pass(&mut self, passed: u64, byte: u8, found: &mut impl FnMut(Found)) {
        self.message_left = self.message_left.saturating_sub(passed);
        if let Some(left) = &mut self.header_left {
            *left = left.saturating_sub(passed);
        }
        match self.step {
            Step::Skip(left) if left <= passed => self.step = Step::Tag,
            Step::Skip(left) => self.step = Step::Skip(left - passed),
            Step::Lost => {}
            Step::Tag | Step::Number(_) | Step::Length(_) => self.varint_byte(byte, found),
        }
        if self.header_left == Some(0) && matches!(self.step, Step::Tag) && self.shift == 0 {
            self.header_left = None;
        }
        self.end_if_over(found);
    }

    fn end_if_over(&mut self, found: &mut impl FnMut(Found)) {
        if self.message_left == 0 {
            *self = Self::default();
            found(Found::MessageEnd);
        }
    }

    fn varint_byte(&mut self, byte: u8, found: &mut impl FnMut(Found)) {
        if self.shift > 63 {
            self.step = Step::Lost;
            return;
        }
        self.varint |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        if byte & 0x80 != 0 {
            return;
        }
        let value = std::mem::take(&mut self.varint);
        self.shift = 0;
        self.step = match self.step {
            Step::Tag => match value & 7 {
                0 => Step::Number(value >> 3),
                1 => Step::Skip(8),
                2 => Step::Length(value >> 3),
                5 => Step::Skip(4),
                _ => Step::Lost,
            },
            Step::Number(field) => {
                found(match self.header_left {
                    Some(_) => Found::Header { field, value },
                    None => Found::Number { field, value },
                });
                Step::Tag
            }
            Step::Length(_) if value == 0 => Step::Tag,
            Step::Length(HEADER_FIELD) if self.header_left.is_none() => {
                self.header_left = Some(value);
                Step::Tag
            }
            Step::Length(_) => Step::Skip(value),
            step @ (Step::Skip(_) | Step::Lost) => step,
        };
    }
}

fn passable(left: u64, chunk: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len())
}
