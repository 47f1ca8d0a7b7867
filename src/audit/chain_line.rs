//! The lines about the log itself, as `line` writes those about requests.

use super::chain::{Beginning, ChainEvent, EarlierChain, EpochKey};
use super::line::Line;

pub(super) fn beginning(line: &mut Line<'_>, beginning: &Beginning) {
    line.text("chain", &beginning.chain.to_string());
    line.number("epoch", beginning.epoch);
    key(line, beginning.key.as_ref());
    line.name("after");
    line.list(&beginning.after, earlier);
}

fn key(line: &mut Line<'_>, key: Option<&EpochKey>) {
    if let Some(key) = key {
        line.name("key");
        line.begin_object();
        line.text("log", &key.log);
        line.text("public", &key.public);
        line.text("signature", &key.signature);
        line.close();
    }
}

fn earlier(line: &mut Line<'_>, earlier: &EarlierChain) {
    line.begin_object();
    line.text("chain", &earlier.chain.to_string());
    line.number("last_seq", earlier.sequence);
    line.text("last_hash", &earlier.hash.to_string());
    line.text("end", earlier.end.name());
    if let Some(lost) = earlier.lost_at_most {
        line.number("lost_at_most", lost);
    }
    line.close();
}

pub(super) fn chain_event(line: &mut Line<'_>, event: &ChainEvent) {
    match event {
        ChainEvent::SegmentStart { chain, epoch, segment, key: sealed } => {
            line.text("type", "segment.start");
            line.text("chain", &chain.to_string());
            line.number("epoch", epoch);
            line.number("segment", segment);
            key(line, sealed.as_ref());
        }
        ChainEvent::SegmentEnd { segment } => {
            line.text("type", "segment.end");
            line.number("segment", segment);
        }
        ChainEvent::Checkpoint { chain, epoch, signature } => {
            line.text("type", "checkpoint");
            line.text("chain", &chain.to_string());
            line.number("epoch", epoch);
            line.text("signature", signature);
        }
        ChainEvent::Recovered { by, torn_bytes, torn } => {
            line.text("type", "chain.recovered");
            line.text("by", &by.to_string());
            line.number("torn_bytes", torn_bytes);
            if let Some(torn) = torn {
                line.text("torn_sha256", &torn.to_string());
            }
        }
        ChainEvent::Gap { reason, records } => {
            line.text("type", "audit.gap");
            line.text("reason", reason);
            if let Some(records) = records {
                line.number("records_at_most", records);
            }
        }
        ChainEvent::SinkBehind { sink, lost } => {
            line.text("type", "audit.gap");
            line.text("reason", "sink_behind");
            line.number("records_at_most", lost.records);
            line.text("sink", sink);
            if let Some((first, last)) = lost.span {
                line.number("first_seq", first);
                line.number("last_seq", last);
            }
        }
        ChainEvent::SegmentRemoved { chain, segment, sequence, hash } => {
            line.text("type", "segment.removed");
            line.text("chain", &chain.to_string());
            line.number("segment", segment);
            line.number("last_seq", sequence);
            line.text("last_hash", &hash.to_string());
        }
    }
}
