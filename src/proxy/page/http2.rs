//! The skin of HTTP/2: one stream, one answer.

use std::rc::Rc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::time::Instant;

use super::super::connection::Client;
use super::{Cut, HttpRequest, PageBody, answer};
use crate::audit::CallId;
use crate::upstream::forward::send_all;

/// Serves one stream to its end.
pub(in crate::proxy) async fn serve(
    client: Rc<Client>,
    call: CallId,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let started = Instant::now();
    let deadline = started + client.core.limits.call_timeout;
    // Dropped with its core, at the end of the drain time.
    let cut = Cut::new("aborted");
    let request = HttpRequest { call, head: &head, has_body: !body.is_end_stream(), started };
    let answering = answer(&client, request, &cut);
    let reset = async {
        drop(std::future::poll_fn(|context| respond.poll_reset(context)).await);
        cut.say("client_gone");
    };
    let response = tokio::select! {
        biased;
        response = answering => response,
        () = reset => return,
    };
    let (head, mut page) = response.into_parts();
    let ended = page.is_end_stream();
    let sent = respond.send_response(Response::from_parts(head, ()), ended);
    let Ok(mut stream) = sent else {
        return cut.say("client_gone");
    };
    let sending = send(&mut stream, &mut page, &cut);
    if !ended && tokio::time::timeout_at(deadline, sending).await.is_err() {
        cut.say("timeout");
        stream.send_reset(Reason::CANCEL);
    }
}

/// Sends the page as the client takes it. One that breaks off is reset, so that nobody takes a part
/// for the whole.
async fn send(stream: &mut SendStream<Bytes>, page: &mut PageBody, cut: &Cut) {
    let mut ended = false;
    while !ended {
        let frame = tokio::select! {
            biased;
            frame = page.frame() => frame,
            _ = std::future::poll_fn(|context| stream.poll_reset(context)) => {
                return cut.say("client_gone");
            }
        };
        ended = frame.is_none() || page.is_end_stream();
        let chunk = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
            None => Bytes::new(),
        };
        if send_all(stream, chunk, ended).await.is_err() {
            return cut.say("client_gone");
        }
    }
}
