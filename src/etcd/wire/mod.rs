//! A walk over protobuf bytes that refuses every shape two decoders could read differently. It
//! builds nothing; the table it follows is made from the descriptors by build.rs.
//!
//! Refused: unknown fields, wrong wire types, groups, a singular field or a oneof set twice, a
//! varint longer than needed or wider than its type, lengths beyond the message, text that is not
//! UTF-8, too deep a nesting, too many parts. Left to the re-encoding: fields out of order, fields written with
//! their default value, empty bytes fields, repeated numbers packed or not.

use std::fmt;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldKind {
    Bool,
    Uint32,
    Varint64,
    Enum,
    Text,
    Bytes,
    /// Index into [`MESSAGES`].
    Message(usize),
}

/// One field of a message.
#[derive(Debug)]
pub(crate) struct FieldShape {
    number: u32,
    name: &'static str,
    kind: FieldKind,
    repeated: bool,
    oneof: Option<u32>,
}

/// One message: its full protobuf name and its fields.
#[derive(Debug)]
pub(crate) struct MessageShape {
    name: &'static str,
    fields: &'static [FieldShape],
}

include!(concat!(env!("OUT_DIR"), "/wire_shapes.rs"));

/// The most messages and repeated values inside one request. Two bytes make an empty message that
/// takes a hundred in memory, and the encoder looks at each once for every level above it: a 2 MiB
/// transaction of a million kept a core busy for a second. What etcd runs needs far fewer:
/// an operation is two of them.
const PARTS_MAX: usize = 16_384;
/// prost stops at the same depth; etcd's own bound on nested transactions is lower.
const DEPTH_MAX: usize = 100;

/// What is wrong with the bytes, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The message in which it was found.
    pub message: &'static str,
    /// What was found there.
    pub fault: Fault,
}

/// A shape that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A field number that the message does not have.
    UnknownField(u64),
    /// A field with another wire type than its own (groups included).
    WrongWireType(&'static str),
    /// A singular field that is set twice.
    SetTwice(&'static str),
    /// Two members of one oneof, or one member twice.
    OneofSetTwice(&'static str),
    /// A varint with needless bytes, or a number too wide for its type.
    Varint,
    /// A length that goes beyond the message.
    Length,
    /// Text that is not UTF-8.
    NotUtf8(&'static str),
    /// More levels of messages than are read.
    TooDeep,
    /// More messages and repeated values than are read.
    TooManyParts,
    /// The table has no such message.
    NoShape,
}

impl fmt::Display for WireError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message;
        match &self.fault {
            Fault::UnknownField(number) => write!(formatter, "{message} has no field {number}"),
            Fault::WrongWireType(name) => {
                write!(formatter, "{message}.{name} has a wrong wire type")
            }
            Fault::SetTwice(name) => write!(formatter, "{message}.{name} is set twice"),
            Fault::OneofSetTwice(name) => {
                write!(formatter, "{message}.{name} sets a oneof that is already set")
            }
            Fault::Varint => {
                write!(formatter, "{message} has a number that is not minimal or too wide")
            }
            Fault::Length => write!(formatter, "{message} has a length beyond its end"),
            Fault::NotUtf8(name) => write!(formatter, "{message}.{name} is not UTF-8"),
            Fault::TooDeep => write!(formatter, "{message} is nested too deep"),
            Fault::TooManyParts => write!(formatter, "{message} has too many parts"),
            Fault::NoShape => write!(formatter, "{message} is not a known message"),
        }
    }
}

impl std::error::Error for WireError {}

/// Walks `bytes` as the message of that full name (`etcdserverpb.PutRequest`).
///
/// # Errors
/// The first refused shape.
pub fn walk(message: &str, bytes: &[u8]) -> Result<(), WireError> {
    let found = MESSAGES.binary_search_by(|shape| shape.name.cmp(message)).ok();
    let shape = found
        .and_then(|index| MESSAGES.get(index))
        .ok_or(WireError { message: "a request", fault: Fault::NoShape })?;
    walk_message(shape, bytes, DEPTH_MAX, &mut { PARTS_MAX })
}

fn walk_message(
    shape: &'static MessageShape,
    bytes: &[u8],
    depth: usize,
    parts_left: &mut usize,
) -> Result<(), WireError> {
    let error = |fault| WireError { message: shape.name, fault };
    let deeper = depth.checked_sub(1).ok_or_else(|| error(Fault::TooDeep))?;
    let mut rest = Reader { bytes };
    let mut seen = Seen::default();
    while !rest.bytes.is_empty() {
        let tag = rest.varint().map_err(error)?;
        let number = tag >> 3;
        let field = shape
            .fields
            .iter()
            .find(|field| u64::from(field.number) == number)
            .ok_or_else(|| error(Fault::UnknownField(number)))?;
        seen.note(field).map_err(error)?;
        if field.repeated || matches!(field.kind, FieldKind::Message(_)) {
            spend_part(parts_left).map_err(error)?;
        }
        match (tag & 7, field.kind) {
            (2, FieldKind::Message(index)) => {
                let content = rest.length_delimited().map_err(error)?;
                let inner = MESSAGES.get(index).ok_or_else(|| error(Fault::NoShape))?;
                walk_message(inner, content, deeper, parts_left)?;
            }
            (2, FieldKind::Bytes) => {
                rest.length_delimited().map_err(error)?;
            }
            (2, FieldKind::Text) => {
                let content = rest.length_delimited().map_err(error)?;
                std::str::from_utf8(content).map_err(|_| error(Fault::NotUtf8(field.name)))?;
            }
            (2, kind) if field.repeated => {
                let mut packed = Reader { bytes: rest.length_delimited().map_err(error)? };
                while !packed.bytes.is_empty() {
                    spend_part(parts_left).map_err(error)?;
                    check_number(kind, packed.varint().map_err(error)?).map_err(error)?;
                }
            }
            (0, kind) => {
                let value = rest.varint().map_err(error)?;
                check_number(kind, value).map_err(|fault| error(fault.named(field.name)))?;
            }
            _ => return Err(error(Fault::WrongWireType(field.name))),
        }
    }
    Ok(())
}

fn spend_part(parts_left: &mut usize) -> Result<(), Fault> {
    *parts_left = parts_left.checked_sub(1).ok_or(Fault::TooManyParts)?;
    Ok(())
}

impl Fault {
    /// A number where text, bytes or a message belongs is a wrong wire type of that field.
    fn named(self, name: &'static str) -> Self {
        match self {
            Self::WrongWireType(_) => Self::WrongWireType(name),
            other @ (Self::UnknownField(_)
            | Self::SetTwice(_)
            | Self::OneofSetTwice(_)
            | Self::Varint
            | Self::Length
            | Self::NotUtf8(_)
            | Self::TooDeep
            | Self::TooManyParts
            | Self::NoShape) => other,
        }
    }
}

/// A bool is 0 or 1; an enum fits 32 bits (negative ones are sign-extended to 64).
/// gogo truncates a wider one and other decoders do not, so it is refused.
fn check_number(kind: FieldKind, value: u64) -> Result<(), Fault> {
    let negative = value >= 0xffff_ffff_8000_0000;
    let fits = match kind {
        FieldKind::Bool => value <= 1,
        FieldKind::Enum => value <= 0x7fff_ffff || negative,
        FieldKind::Uint32 => value <= 0xffff_ffff,
        FieldKind::Varint64 => true,
        FieldKind::Text | FieldKind::Bytes | FieldKind::Message(_) => {
            return Err(Fault::WrongWireType("field"));
        }
    };
    if fits { Ok(()) } else { Err(Fault::Varint) }
}

/// The singular fields and oneofs met so far in one message. No etcd message has a field number
/// above 127 (the highest is `Compare.range_end`, 64).
#[derive(Default)]
struct Seen {
    fields: u128,
    oneofs: u64,
}

impl Seen {
    fn note(&mut self, field: &FieldShape) -> Result<(), Fault> {
        if field.repeated {
            return Ok(());
        }
        if let Some(oneof) = field.oneof {
            let bit = 1_u64.checked_shl(oneof).ok_or(Fault::NoShape)?;
            if self.oneofs & bit != 0 {
                return Err(Fault::OneofSetTwice(field.name));
            }
            self.oneofs |= bit;
        }
        let bit = 1_u128.checked_shl(field.number).ok_or(Fault::NoShape)?;
        if self.fields & bit != 0 {
            return Err(Fault::SetTwice(field.name));
        }
        self.fields |= bit;
        Ok(())
    }
}

/// What is left of a message.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A varint of minimal length. A tag such as `8a 80 80 80 80 01` (field 2^32 + 1) is read as
    /// field 1 by etcd 3.4 to 3.6: it comes out of here as the number it says, and is unknown.
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for shift in (0..=63).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or(Fault::Length)?;
            self.bytes = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && *byte > 1 {
                return Err(Fault::Varint);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let needless = *byte == 0 && shift > 0;
                return if needless { Err(Fault::Varint) } else { Ok(value) };
            }
        }
        Err(Fault::Varint)
    }

    fn length_delimited(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(self.varint()?).map_err(|_| Fault::Length)?;
        let (content, rest) = self.bytes.split_at_checked(length).ok_or(Fault::Length)?;
        self.bytes = rest;
        Ok(content)
    }
}

#[cfg(test)]
mod tests;
