//! Decisions with what became of them, and from where they were asked: three records made one.
//!
//! Memory is bounded: of calls and connections that are open at a time so many are remembered; what was
//! forgotten is shown as unknown.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::calls::{Call, CallOutcome, KeyTouch};
use super::record::Record;
use crate::chain::{ChainId, LineHash, head};

/// Open calls that are remembered.
const CALLS_MAX: usize = 200_000;
/// Bytes of them, about: a call may name thousands of keys.
const CALLS_BYTES_MAX: usize = 128 << 20;
/// Open connections that are remembered.
const CONNECTIONS_MAX: usize = 1_000_000;
/// The longest address and port that one comes from.
const SOURCE_BYTES_MAX: usize = 64;

type Key = (u64, u64, u64, u64);

/// What is open in one chain.
#[derive(Debug, Default)]
pub(super) struct Joining {
    sources: HashMap<u64, String>,
    /// In the order in which they were decided.
    open: BTreeMap<u64, (Key, Call)>,
    open_bytes: usize,
    by_call: HashMap<Key, u64>,
    recent: Option<Recent>,
    /// The last line, and the highest number of a record that was read.
    last_line: Vec<u8>,
    last: u64,
    /// A second copy of what was read is being read: records up to that one are known. The next must stand behind the
    /// last line, or whoever can put a copy beside a file could add to it what `verify` does not see.
    known: Option<u64>,
    leaves_out: bool,
}

/// Where the turns of who follows ended, by sequence numbers: calls that stand between the two and are still open are
/// told now.
#[derive(Debug, Default)]
struct Recent {
    told: u64,
    last_turn: u64,
    newest: u64,
}

impl Joining {
    /// One that can tell calls before they end.
    pub(super) fn following() -> Self {
        Self { recent: Some(Recent::default()), ..Self::default() }
    }

    /// From now on records that were read before are passed over, or none is.
    pub(super) fn skip_known(&mut self, skips: bool) {
        self.known = skips.then_some(self.last);
    }

    /// Takes a line, which may be any.
    ///
    /// # Errors
    /// When it is about calls and cannot be read.
    pub(super) fn take_line(
        &mut self,
        chain: ChainId,
        line: &[u8],
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
    ) -> Result<(), String> {
        // Only these are about calls; the rest of a large log is not taken apart.
        let about = ["decision", "outcome", "connection.open", "connection.close"];
        let head = head(line).ok_or("it does not begin like a record")?;
        if let Some(known) = self.known {
            if head.sequence <= known {
                return Ok(());
            }
            let goes_on = || LineHash::previous_in(line) == Some(LineHash::of(&self.last_line));
            // Of a first copy without a line there is nothing to go on from.
            if !self.last_line.is_empty() && !goes_on() {
                return Err("it does not go on where the other copy of this file ends".to_owned());
            }
            self.known = None;
        }
        self.last = self.last.max(head.sequence);
        self.last_line.clear();
        self.last_line.extend_from_slice(line);
        if about.contains(&head.kind) {
            let record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
            self.take(chain, &record, is_wanted, tell);
        } else if head.kind == "process.start" {
            self.leaves_out |= has_rule_that_leaves_out(line);
        } else if ["process.stop", "chain.recovered"].contains(&head.kind) {
            self.end(tell);
        }
        Ok(())
    }

    /// Whether rules of the config left requests out.
    pub(super) const fn leaves_out(&self) -> bool {
        self.leaves_out
    }

    /// Tells the calls that have been open since the turn before the last, as far as they are new.
    pub(super) fn tell_open(&mut self, tell: &mut dyn FnMut(Call)) {
        let Some(recent) = &mut self.recent else { return };
        let told = (Bound::Excluded(recent.told), Bound::Included(recent.last_turn));
        for (_, call) in self.open.range(told).map(|(_, open)| open) {
            tell(Call { is_open: true, ..call.clone() });
        }
        (recent.told, recent.last_turn) = (recent.last_turn, recent.newest);
    }

    /// Tells every call that is open, and none of them again before its end.
    pub(super) fn tell_all_open(&mut self, tell: &mut dyn FnMut(Call)) {
        for (_, call) in self.open.values() {
            tell(Call { is_open: true, ..call.clone() });
        }
        if let Some(Recent { told, last_turn, newest }) = &mut self.recent {
            (*told, *last_turn) = (*newest, *newest);
        }
    }

    fn take(
        &mut self,
        chain: ChainId,
        record: &Record<'_>,
        is_wanted: &dyn Fn(&Call) -> bool,
        tell: &mut dyn FnMut(Call),
    ) {
        let number = |value: Option<u64>| value.unwrap_or(0);
        let connection = number(record.connection);
        let key = (connection, number(record.call), number(record.message), number(record.step));
        match &*record.kind {
            "connection.open" => {
                if let Some(source) = &record.source
                    && self.sources.len() < CONNECTIONS_MAX
                    && source.len() <= SOURCE_BYTES_MAX
                {
                    self.sources.insert(connection, source.clone().into_owned());
                }
            }
            "connection.close" => drop(self.sources.remove(&connection)),
            "decision" => {
                let source = self.sources.get(&connection).cloned();
                let call = call_of(chain, record, source);
                if !is_wanted(&call) {
                } else if call.verdict == "allow" {
                    self.open(key, call, tell);
                } else {
                    tell(call);
                }
            }
            "outcome" => {
                if let Some((_, mut call)) =
                    self.by_call.remove(&key).and_then(|seq| self.open.remove(&seq))
                {
                    self.open_bytes = self.open_bytes.saturating_sub(bytes_of(&call));
                    call.outcome = Some(CallOutcome {
                        status: record.status,
                        fault: record.fault.clone().map(std::borrow::Cow::into_owned),
                        revision: record.revision,
                        count: record.count,
                        latency_us: record.latency_us,
                    });
                    tell(call);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, key: Key, call: Call, tell: &mut dyn FnMut(Call)) {
        self.open_bytes += bytes_of(&call);
        while (self.open.len() >= CALLS_MAX || self.open_bytes > CALLS_BYTES_MAX)
            && let Some((_, (oldest, call))) = self.open.pop_first()
        {
            self.by_call.remove(&oldest);
            self.open_bytes = self.open_bytes.saturating_sub(bytes_of(&call));
            tell(call);
        }
        if let Some(recent) = &mut self.recent {
            recent.newest = recent.newest.max(call.seq);
        }
        self.by_call.insert(key, call.seq);
        if let Some((_, same)) = self.open.insert(call.seq, (key, call)) {
            self.open_bytes = self.open_bytes.saturating_sub(bytes_of(&same));
        }
    }

    /// The chain has ended: tells what is open.
    pub(super) fn end(&mut self, tell: &mut dyn FnMut(Call)) {
        self.open_bytes = 0;
        for (_, (_, call)) in std::mem::take(&mut self.open) {
            tell(call);
        }
        self.by_call.clear();
        self.sources.clear();
        self.recent = self.recent.take().map(|_| Recent::default());
    }
}

fn call_of(chain: ChainId, record: &Record<'_>, source: Option<String>) -> Call {
    let number = |value: Option<u64>| value.unwrap_or(0);
    let mut call = format!("{}/{}", number(record.connection), number(record.call));
    if let Some(message) = record.message {
        call.push_str(&format!("/{message}"));
    }
    if let Some(step) = record.step {
        call.push_str(&format!("#{step}"));
    }
    let rules = record.rules.iter().chain(&record.rule).map(|rule| rule.clone().into_owned());
    let keys = record.touches.iter().enumerate().filter_map(|(position, touch)| {
        let verb = touch.verb.clone().into_owned();
        touch.keys().map(|keys| KeyTouch { position, verb, keys })
    });
    let unnamed = record.touches.iter().filter(|touch| touch.is_unnamed());
    let text = |value: &Option<std::borrow::Cow<'_, str>>| value.as_deref().map(str::to_owned);
    Call {
        chain: chain.to_string(),
        seq: record.seq,
        time: record.time.clone().into_owned(),
        principal: text(&record.principal),
        source,
        rpc: text(&record.rpc).or_else(|| text(&record.path)).unwrap_or_default(),
        call,
        verdict: text(&record.verdict).unwrap_or_default(),
        reason: text(&record.reason),
        rules: rules.collect(),
        touches: record.touches.iter().map(super::record::Touch::shown).collect(),
        kubernetes: Vec::new(),
        one_in: record.one_in,
        keys: keys.collect(),
        unnamed: unnamed.map(|touch| touch.verb.clone().into_owned()).collect(),
        perhaps: false,
        is_open: false,
        outcome: None,
    }
}

/// About what a call takes in memory. Its texts do not change while it is open.
fn bytes_of(call: &Call) -> usize {
    const AROUND: usize = 512;
    let texts = call.touches.iter().chain(&call.rules).map(|text| text.len() + size_of::<String>());
    // Keys are there as bytes, too.
    AROUND + 2 * texts.sum::<usize>() + call.keys.len() * size_of::<KeyTouch>() + call.rpc.len()
}

/// Whether the rules that a first record shows leave requests out: of all that they fit, or of some alike.
fn has_rule_that_leaves_out(line: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Start {
        #[serde(default)]
        levels: Vec<String>,
    }
    let start: Option<Start> = serde_json::from_slice(line).ok();
    let leaves_out = |rule: &String| rule.starts_with("none") || rule.contains(" one_in=");
    start.is_some_and(|start| start.levels.iter().any(leaves_out))
}
