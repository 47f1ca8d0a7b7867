//! Random users with random rights, as etcd is told them and as a policy says the same.

use std::fmt::Write as _;

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use ringfence::etcd::pb::authpb::permission::Type;

/// Few letters, so that the ends of grants and of requests meet often.
const LETTERS: [u8; 4] = [0, b'a', b'b', 0xff];
const NO_END: &[u8] = b"\0";

/// All chance of a run, from its seed.
pub struct Dice(TestRng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0.next_u32() as usize % limit
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn key(&mut self, shortest: usize) -> Vec<u8> {
        let length = shortest + self.below(4 - shortest);
        (0..length).map(|_| self.pick(&LETTERS)).collect()
    }
}

/// Keys from `key` on, before `end`; no end is the single key, one zero byte is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub key: Vec<u8>,
    pub end: Vec<u8>,
}

impl Span {
    /// Any span that etcd takes for a permission.
    fn of_grant(dice: &mut Dice) -> Self {
        let key = dice.key(1);
        match dice.below(8) {
            0..=2 => Self { key, end: Vec::new() },
            3 | 4 => Self { end: prefix_end(&key), key },
            5 => Self { key, end: NO_END.to_vec() },
            6 if dice.once_in(4) => Self { key: vec![0], end: NO_END.to_vec() },
            _ => {
                let end = dice.key(1);
                if end > key { Self { key, end } } else { Self { end: prefix_end(&key), key } }
            }
        }
    }

    /// First key and end; `None` is no end. It says nothing of spans whose end is not behind the key.
    fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let end = match &*self.end {
            b"" => Some([&self.key[..], &[0]].concat()),
            NO_END => None,
            end => Some(end.to_vec()),
        };
        (self.key.clone(), end)
    }

    fn contains(&self, key: &[u8]) -> bool {
        let (from, end) = self.bounds();
        from.as_slice() <= key && end.is_none_or(|end| key < &end[..])
    }

    /// Whether the spans hold all of this one: the first key that is in none of them would be this
    /// one's first, or the end of one of them.
    fn is_within(&self, spans: &[&Self]) -> bool {
        let (from, end) = self.bounds();
        let within = |key: &Vec<u8>| *key >= from && end.as_ref().is_none_or(|end| key < end);
        let ends = spans.iter().filter_map(|span| span.bounds().1).filter(within);
        let open = spans.iter().any(|span| span.bounds().1.is_none());
        let holds = |key: &Vec<u8>| spans.iter().any(|span| span.contains(key));
        (end.is_some() || open) && std::iter::once(from.clone()).chain(ends).all(|key| holds(&key))
    }
}

pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff);
    kept.map_or_else(|| NO_END.to_vec(), |at| [&prefix[..at], &[prefix[at] + 1]].concat())
}

pub struct User {
    pub name: String,
    /// The CA and CN that a policy knows the user by.
    pub certificate: (&'static str, String),
    pub is_root: bool,
    pub grants: Vec<(Type, Span)>,
}

/// The first three have certificates of the demo PKI, by these names of files.
pub const CERTIFICATES: [&str; 3] = ["acme", "globex", "apiserver"];

pub fn users(dice: &mut Dice, round: usize, count: usize) -> Vec<User> {
    let user = |at: usize, dice: &mut Dice| {
        let name = format!("user-{round}-{at}");
        let certificate = match at {
            0 => ("tenants", "acme".to_owned()),
            1 => ("tenants", "globex".to_owned()),
            2 => ("kubernetes", "kube-apiserver-etcd-client".to_owned()),
            _ => ("tenants", name.clone()),
        };
        let kinds = [Type::Read, Type::Write, Type::Readwrite];
        let mut grants: Vec<(Type, Span)> = Vec::new();
        for _ in 0..dice.below(6) {
            let grant = (dice.pick(&kinds), Span::of_grant(dice));
            // Of two grants of a role on one span, etcd keeps the last.
            grants.retain(|other| other.1 != grant.1);
            grants.push(grant);
        }
        User { name, certificate, grants, is_root: at == count - 1 }
    };
    (0..count).map(|at| user(at, dice)).collect()
}

impl User {
    pub fn may(&self, kind: Type, span: &Span) -> bool {
        let of_kind = |grant: &&(Type, Span)| grant.0 == kind || grant.0 == Type::Readwrite;
        let spans: Vec<&Span> = self.grants.iter().filter(of_kind).map(|grant| &grant.1).collect();
        self.is_root || span.is_within(&spans)
    }

    fn policy(&self) -> String {
        let (name, (ca, cn)) = (&self.name, &self.certificate);
        let mut text = format!(
            "[[identity]]\nname = \"{name}\"\nmatch = {{ ca = \"{ca}\", cn = \"{cn}\" }}\n\
             roles = [\"{name}\"]\n[[role]]\nname = \"{name}\"\nrules = [\n"
        );
        for (kind, Span { key, end }) in &self.grants {
            let verbs = match kind {
                Type::Read => r#""get", "list", "watch""#,
                Type::Write => r#""put", "delete""#,
                Type::Readwrite => r#""get", "list", "watch", "put", "delete""#,
            };
            let keys = match &**end {
                b"" => format!("key = \"{}\"", hex(key)),
                NO_END => format!("range = {{ from = \"{}\" }}", hex(key)),
                end => format!("range = {{ from = \"{}\", to = \"{}\" }}", hex(key), hex(end)),
            };
            writeln!(text, "{{ {keys}, encoding = \"hex\", allow = [{verbs}] }},").unwrap();
        }
        if self.is_root {
            text.push_str(
                r#"{ prefix = "", allow = ["get", "list", "watch", "put", "delete"] },
{ allow = ["compact", "member.change", "alarm.set", "hash", "snapshot", "defragment", "move-leader",
  "downgrade", "auth.read", "auth.change"] },"#,
            );
        }
        // What etcd gives to everybody who is logged in.
        text.push_str(
            "\n{ allow = [\"lease\", \"status\", \"member.list\", \"alarm.get\", \"auth.login\"] },\n]\n",
        );
        text
    }
}

pub fn policy(users: &[User]) -> String {
    users.iter().map(User::policy).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
