//! One stream of messages, both ways.

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use prost::Message;

use super::{PATIENCE, Reply, framed};

pub struct RawStream {
    requests: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    bytes: BytesMut,
    /// How it ended, once it has.
    pub end: Option<Reply>,
}

impl RawStream {
    pub(super) fn new(requests: SendStream<Bytes>, response: ResponseFuture) -> Self {
        let bytes = BytesMut::new();
        Self { requests, response: Some(response), body: None, bytes, end: None }
    }

    pub fn send(&mut self, message: &impl Message) {
        self.send_bytes(&message.encode_to_vec());
    }

    /// One message of any bytes.
    pub fn send_bytes(&mut self, message: &[u8]) {
        self.requests.send_data(framed(message), false).unwrap();
    }

    /// Says that no more messages come.
    pub fn finish(&mut self) {
        self.requests.send_data(Bytes::new(), true).unwrap();
    }

    /// Goes away without a word.
    pub fn reset(mut self) {
        self.requests.send_reset(h2::Reason::CANCEL);
    }

    /// The next message; it must come.
    pub async fn next<M: Message + Default>(&mut self) -> M {
        let message = self.next_or_end().await;
        message.unwrap_or_else(|| panic!("the stream has ended: {:?}", self.end))
    }

    /// The end, without another message.
    pub async fn expect_end(&mut self) -> &Reply {
        let message = self.next_bytes().await;
        assert!(message.is_none(), "a message instead of the end: {message:?}");
        self.end.as_ref().unwrap()
    }

    /// The next message; `None` at the end.
    pub async fn next_or_end<M: Message + Default>(&mut self) -> Option<M> {
        self.next_bytes().await.map(|message| M::decode(message).unwrap())
    }

    /// The next message as it came; `None` at the end.
    pub async fn next_bytes(&mut self) -> Option<Bytes> {
        let next = self.read_message();
        tokio::time::timeout(PATIENCE, next).await.expect("a message or the end in time")
    }

    async fn read_message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.buffered_message() {
                return Some(message);
            }
            if self.end.is_some() {
                return None;
            }
            self.read_more().await;
        }
    }

    fn buffered_message(&mut self) -> Option<Bytes> {
        let length = self.bytes.get(1..5)?.try_into().map(u32::from_be_bytes).unwrap() as usize;
        if self.bytes.len() < 5 + length {
            return None;
        }
        assert_eq!(self.bytes[0], 0, "compressed");
        self.bytes.advance(5);
        Some(self.bytes.split_to(length).freeze())
    }

    async fn read_more(&mut self) {
        let Some(body) = &mut self.body else {
            let mut end = Reply::default();
            match self.response.take().unwrap().await {
                Err(_) => self.end = Some(end),
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    if body.is_end_stream() {
                        end.read_status(&head.headers);
                        self.end = Some(end);
                    }
                    self.body = Some(body);
                }
            }
            return;
        };
        if let Some(Ok(chunk)) = body.data().await {
            body.flow_control().release_capacity(chunk.len()).unwrap();
            self.bytes.extend_from_slice(&chunk);
            return;
        }
        let mut end = Reply { data: self.bytes.to_vec(), ..Reply::default() };
        if let Ok(Some(trailers)) = body.trailers().await {
            end.read_status(&trailers);
        }
        self.end = Some(end);
    }
}
