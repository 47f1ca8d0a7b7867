//! Length-prefixed messages (grpc/doc PROTOCOL-HTTP2.md). Of a unary request there is one, read
//! exactly: not none, not two, not more bytes than it says. Of a stream they come one by one.

use bytes::{BufMut, Bytes, BytesMut};

/// One flag byte and four bytes of length.
const PREFIX_BYTES: usize = 5;

/// Collects the DATA of one request.
#[derive(Debug)]
pub struct MessageReader {
    message_bytes_max: usize,
    chunks: Chunks,
}

#[derive(Debug)]
enum Chunks {
    None,
    One(Bytes),
    Joined(BytesMut),
}

/// Why DATA is not one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The body ended before a message was whole.
    #[error("ringfence: the request ends before its message does")]
    Incomplete,
    /// More bytes than one message: a second one, or a tail (etcd would run the first).
    #[error("ringfence: the request holds more than one message")]
    MoreThanOne,
    /// The compressed flag is set although no encoding was named.
    #[error("grpc: compressed flag set with identity or empty encoding")]
    Compressed,
    /// A flag byte that means nothing.
    #[error("ringfence: the message's flag byte is neither 0 nor 1")]
    Flag,
    /// Larger than is taken.
    #[error("grpc: received message larger than max ({length} vs. {max})")]
    TooLarge {
        /// What the prefix says.
        length: usize,
        /// What is taken.
        max: usize,
    },
}

impl MessageReader {
    /// A reader that takes a message of up to that many bytes.
    #[must_use]
    pub const fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, chunks: Chunks::None }
    }

    /// Takes the next DATA. Nothing is allocated on the word of a length prefix, or five bytes could
    /// cost us a gigabyte: the buffer grows with what has really come.
    ///
    /// # Errors
    /// As soon as the bytes cannot be one message within the bounds.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), FrameError> {
        self.chunks = match std::mem::replace(&mut self.chunks, Chunks::None) {
            Chunks::None => Chunks::One(chunk),
            Chunks::One(first) => {
                let mut joined = BytesMut::with_capacity(first.len() + chunk.len());
                joined.put(first);
                joined.put(chunk);
                Chunks::Joined(joined)
            }
            Chunks::Joined(mut joined) => {
                joined.put(chunk);
                Chunks::Joined(joined)
            }
        };
        match self.message_bytes()? {
            Some(length) if self.bytes().len() > PREFIX_BYTES + length => {
                Err(FrameError::MoreThanOne)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The message, once the body has ended.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn finish(self) -> Result<Bytes, FrameError> {
        let length = self.message_bytes()?.ok_or(FrameError::Incomplete)?;
        if self.bytes().len() != PREFIX_BYTES + length {
            return Err(FrameError::Incomplete);
        }
        Ok(match self.chunks {
            Chunks::None => Bytes::new(),
            Chunks::One(chunk) => chunk.slice(PREFIX_BYTES..),
            Chunks::Joined(joined) => joined.freeze().slice(PREFIX_BYTES..),
        })
    }

    fn bytes(&self) -> &[u8] {
        match &self.chunks {
            Chunks::None => &[],
            Chunks::One(chunk) => chunk,
            Chunks::Joined(joined) => joined,
        }
    }

    fn message_bytes(&self) -> Result<Option<usize>, FrameError> {
        message_bytes(self.bytes(), self.message_bytes_max)
    }
}

/// The length that the next message's prefix says; `None` while the prefix is not whole.
fn message_bytes(bytes: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some((flag, length)) = bytes.split_first() else {
        return Ok(None);
    };
    match flag {
        0 => {}
        1 => return Err(FrameError::Compressed),
        _ => return Err(FrameError::Flag),
    }
    let Some(length) = length.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > max { Err(FrameError::TooLarge { length, max }) } else { Ok(Some(length)) }
}

/// The message with its prefix, as it is sent.
#[must_use]
pub fn framed(message: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    bytes.put_u8(0);
    // INVARIANT: a request is bounded by `limits.request_bytes`, far below 4 GiB.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Takes the messages of a stream out of its DATA, one by one.
#[derive(Debug)]
pub struct MessageSplitter {
    message_bytes_max: usize,
    buffer: BytesMut,
}

impl MessageSplitter {
    /// A splitter that takes messages of up to that many bytes.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, buffer: BytesMut::new() }
    }

    /// Takes the next DATA. The caller takes out all messages before it pushes more, so the buffer
    /// holds less than one message and one chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// When what stands next is none within the bounds.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = message_bytes(&self.buffer, self.message_bytes_max)? else {
            return Ok(None);
        };
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let message = self.buffer.split_to(PREFIX_BYTES + length).freeze();
        Ok(Some(message.slice(PREFIX_BYTES..)))
    }

    /// Bytes that have come and were not taken out.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&'static [u8]], expected: Result<&'static [u8], FrameError>) {
        let mut reader = MessageReader::new(16);
        let pushed = chunks.iter().try_for_each(|chunk| reader.push(Bytes::from_static(chunk)));
        let message = pushed.and_then(|()| reader.finish());
        assert_eq!(message, expected.map(Bytes::from_static), "{chunks:?}");
    }

    #[test]
    fn exactly_one_message_is_read() {
        check(&[b"\0\0\0\0\x02hi"], Ok(b"hi"));
        check(&[b"\0\0\0", b"", b"\0\x02", b"h", b"i"], Ok(b"hi"));
        check(&[b"\0\0\0\0\0"], Ok(b""));
        check(&[], Err(FrameError::Incomplete)); // 116
        check(&[b"\0\0\0\0\x02h"], Err(FrameError::Incomplete));
        check(&[b"\0\0\0\0\x02hi\0\0\0\0\0"], Err(FrameError::MoreThanOne)); // 115
        check(&[b"\0\0\0\0\x02hi", b"x"], Err(FrameError::MoreThanOne)); // 118
        check(&[b"\x01\0\0\0\x02hi"], Err(FrameError::Compressed)); // 113
        check(&[b"\x02\0\0\0\x02hi"], Err(FrameError::Flag));
        let too_large = FrameError::TooLarge { length: 0xffff_ffff, max: 16 };
        check(&[b"\0\xff\xff\xff\xff"], Err(too_large)); // 117
    }
}
