//! Random requests, and what each needs: worked out here a second time, in the words of etcd's rights,
//! so that every difference of the two others has a reason.

use std::fmt::Debug;

use prost::Message;
use ringfence::etcd::Rpc;
use ringfence::etcd::pb::authpb::permission::Type;
use ringfence::etcd::pb::etcdserverpb::{self as pb, compare, request_op, watch_request};
use ringfence::etcd::pb::v3electionpb::LeaderRequest;
use ringfence::etcd::pb::v3lockpb::UnlockRequest;

use super::classes::{Bug, Origin, Stricter};
use super::rbac::{Dice, Span, User, prefix_end};

/// A lease that is there, and the key on it, if there is one.
pub type Leases = [(i64, Option<&'static [u8]>)];
/// One that is not there.
const NO_LEASE: i64 = 424_242;
/// A revision that is never reached: to compact there is refused by etcd, behind its check.
const FAR_REVISION: i64 = 1 << 40;

pub enum Demand {
    Key(Type, Span),
    Admin,
    /// Nobody here can have it.
    Never,
}

pub struct Request {
    pub rpc: Rpc,
    pub bytes: Vec<u8>,
    /// For people.
    pub text: String,
    pub needs: Vec<(Demand, Origin)>,
}

impl Request {
    /// The origins of what this user does not have.
    pub fn unmet(&self, user: &User) -> Vec<Origin> {
        let has = |demand: &Demand| match demand {
            Demand::Key(kind, span) => user.may(*kind, span),
            Demand::Admin => user.is_root,
            Demand::Never => false,
        };
        self.needs.iter().filter(|(demand, _)| !has(demand)).map(|need| need.1).collect()
    }
}

pub struct Maker<'a> {
    pub dice: &'a mut Dice,
    pub leases: &'a Leases,
    pub line: &'a str,
    pub users: &'a [User],
    needs: Vec<(Demand, Origin)>,
}

impl<'a> Maker<'a> {
    pub const fn new(
        dice: &'a mut Dice,
        leases: &'a Leases,
        line: &'a str,
        users: &'a [User],
    ) -> Self {
        Self { dice, leases, line, users, needs: Vec::new() }
    }

    /// A request that leaves the keys of leases as they are.
    pub fn on_leases(&mut self) -> Request {
        let id = self.lease();
        match self.dice.below(9) {
            0..=2 => {
                let keys = self.dice.once_in(2);
                let key = self.key_of(id);
                match key {
                    Some(key) => {
                        let span = point(key);
                        self.need(Type::Write, span.clone(), Origin::Stricter(Stricter::LeaseTime));
                        if keys {
                            self.need(Type::Read, span, Origin::Bug(Bug::LeaseKeys));
                        }
                    }
                    None => self.never(Stricter::LeaseTime),
                }
                self.done(Rpc::LeaseTimeToLive, &pb::LeaseTimeToLiveRequest { id, keys }, b"")
            }
            3 | 4 => {
                match self.key_of(id) {
                    Some(key) => {
                        self.need(Type::Write, point(key), Origin::Bug(Bug::Unguarded));
                    }
                    None => self.never(Stricter::LeaseWithoutKeys),
                }
                self.done(Rpc::LeaseKeepAlive, &pb::LeaseKeepAliveRequest { id }, b"")
            }
            5 => self.done(Rpc::LeaseLeases, &pb::LeaseLeasesRequest {}, b""),
            _ => {
                // A branch that is never taken counts, too; and binds nothing.
                let key = self.dice.key(1);
                let compare = pb::Compare {
                    target: compare::CompareTarget::Version.into(),
                    key: key.clone().into(),
                    target_union: Some(compare::TargetUnion::Version(FAR_REVISION)),
                    ..Default::default()
                };
                self.need(Type::Read, point(&key), Origin::Plain);
                let put = self.put(id, Some(Bug::TxnPut));
                let put = operation(request_op::Request::RequestPut(put));
                let txn = pb::TxnRequest {
                    compare: vec![compare],
                    success: vec![put],
                    ..Default::default()
                };
                self.done(Rpc::Txn, &txn, b"")
            }
        }
    }

    /// Any request that does no harm to those that follow.
    pub fn any(&mut self, asker: &User) -> Request {
        match self.dice.below(100) {
            0..=21 => {
                let (request, tail) = (self.range(Origin::Plain), self.empty_end());
                self.done(Rpc::Range, &request, tail)
            }
            22..=36 => {
                let lease = if self.dice.once_in(8) { NO_LEASE } else { 0 };
                let request = self.put(lease, None);
                self.done(Rpc::Put, &request, b"")
            }
            37..=49 => {
                let (request, tail) = (self.delete(Origin::Plain), self.empty_end());
                self.done(Rpc::DeleteRange, &request, tail)
            }
            50..=71 => {
                let mut request = self.txn(0);
                while ends_every_etcd(&request) {
                    self.needs.clear();
                    request = self.txn(0);
                }
                self.done(Rpc::Txn, &request, b"")
            }
            72..=83 => self.watch(),
            84..=87 => self.session(),
            88..=90 if self.line == "3.7" => {
                let request = self.range(Origin::Plain);
                self.done(Rpc::RangeStream, &request, b"")
            }
            88..=93 => self.lease_call(),
            _ => self.store_call(asker),
        }
    }

    fn done(&mut self, rpc: Rpc, message: &(impl Message + Debug), tail: &[u8]) -> Request {
        let bytes = [&message.encode_to_vec(), tail].concat();
        let text = format!("{message:?}").replace("b\"", "\"");
        Request { rpc, bytes, text, needs: std::mem::take(&mut self.needs) }
    }

    fn need(&mut self, kind: Type, span: Span, origin: Origin) {
        self.needs.push((Demand::Key(kind, span), origin));
    }

    fn never(&mut self, stricter: Stricter) {
        self.needs.push((Demand::Never, Origin::Stricter(stricter)));
    }

    fn lease(&mut self) -> i64 {
        let known: Vec<i64> = self.leases.iter().map(|lease| lease.0).collect();
        if self.dice.once_in(8) { NO_LEASE } else { self.dice.pick(&known) }
    }

    fn key_of(&self, id: i64) -> Option<&'static [u8]> {
        self.leases.iter().find(|lease| lease.0 == id).and_then(|lease| lease.1)
    }

    /// A key and an end of any kind: points, prefixes, inverted, equal, empty and open ones.
    fn span(&mut self) -> Span {
        let shortest = usize::from(!self.dice.once_in(40));
        let key = self.dice.key(shortest);
        let end = match self.dice.below(10) {
            0..=3 => Vec::new(),
            4 | 5 => prefix_end(&key),
            6 => vec![0],
            7 if self.dice.once_in(3) => vec![0, 0],
            7 if self.dice.once_in(2) => key.clone(),
            _ => self.dice.key(1),
        };
        Span { key, end }
    }

    /// A `range_end` that is there and has no bytes: field 2, length 0.
    fn empty_end(&mut self) -> &'static [u8] {
        let plain = |need: &(Demand, Origin)| match &need.0 {
            Demand::Key(_, span) => span.end.is_empty(),
            Demand::Admin | Demand::Never => false,
        };
        if self.needs.iter().all(plain) && self.dice.once_in(4) { b"\x12\x00" } else { b"" }
    }

    fn range(&mut self, origin: Origin) -> pb::RangeRequest {
        let Span { key, end } = self.span();
        self.need(Type::Read, Span { key: key.clone(), end: end.clone() }, origin);
        pb::RangeRequest {
            key: key.into(),
            range_end: end.into(),
            limit: if self.dice.once_in(3) { 1 } else { 0 },
            sort_order: if self.dice.once_in(60) { 9 } else { 0 },
            serializable: self.dice.once_in(2),
            keys_only: self.dice.once_in(4),
            count_only: self.dice.once_in(4),
            ..Default::default()
        }
    }

    /// `within`: what some releases forget of a Put in a transaction.
    fn put(&mut self, lease: i64, within: Option<Bug>) -> pb::PutRequest {
        let shortest = usize::from(!self.dice.once_in(40));
        let key = self.dice.key(shortest);
        let span = point(&key);
        let forgotten = within.map_or(Origin::Plain, Origin::Bug);
        let plain = if within == Some(Bug::Nested) { forgotten } else { Origin::Plain };
        let (prev_kv, ignore_value) = (self.dice.once_in(3), self.dice.once_in(6));
        let ignore_lease = lease == 0 && self.dice.once_in(6);
        self.need(Type::Write, span.clone(), plain);
        if prev_kv {
            self.need(Type::Read, span.clone(), forgotten);
        }
        if ignore_value || ignore_lease {
            self.need(Type::Read, span, Origin::Stricter(Stricter::Ignore));
        }
        if lease != 0 {
            match self.key_of(lease) {
                Some(key) => self.need(Type::Write, point(key), forgotten),
                None => self.never(Stricter::Binding),
            }
        }
        let value: &'static [u8] = if ignore_value { b"" } else { b"v" };
        pb::PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self, origin: Origin) -> pb::DeleteRangeRequest {
        let Span { key, end } = self.span();
        let span = Span { key: key.clone(), end: end.clone() };
        let prev_kv = self.dice.once_in(3);
        self.need(Type::Write, span.clone(), origin);
        if prev_kv {
            self.need(Type::Read, span, origin);
        }
        pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv }
    }

    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        let origin = if depth == 0 { Origin::Plain } else { Origin::Bug(Bug::Nested) };
        let compare = (0..self.dice.below(3)).map(|_| self.compare(origin)).collect();
        let success = (0..self.dice.below(3)).map(|_| self.operation(depth, origin)).collect();
        let failure = (0..self.dice.below(3)).map(|_| self.operation(depth, origin)).collect();
        pb::TxnRequest { compare, success, failure }
    }

    fn compare(&mut self, origin: Origin) -> pb::Compare {
        let Span { key, end } = self.span();
        self.need(Type::Read, Span { key: key.clone(), end: end.clone() }, origin);
        let target = compare::CompareTarget::Mod.into();
        let target = if self.dice.once_in(30) { 9 } else { target };
        let union = compare::TargetUnion::ModRevision(1);
        let other = compare::TargetUnion::Version(1);
        pb::Compare {
            result: if self.dice.once_in(60) { 9 } else { 0 },
            target,
            key: key.into(),
            range_end: end.into(),
            target_union: Some(if self.dice.once_in(30) { other } else { union }),
        }
    }

    fn operation(&mut self, depth: usize, origin: Origin) -> pb::RequestOp {
        use request_op::Request as Op;
        let within = if depth == 0 { Bug::TxnPut } else { Bug::Nested };
        operation(match self.dice.below(8) {
            0..=2 => Op::RequestRange(self.range(origin)),
            3 | 4 => Op::RequestPut(self.put(0, Some(within))),
            5 => Op::RequestDeleteRange(self.delete(origin)),
            _ if depth < 2 => Op::RequestTxn(self.txn(depth + 1)),
            _ => Op::RequestRange(self.range(origin)),
        })
    }

    fn watch(&mut self) -> Request {
        let Span { key, end } = self.span();
        let read = if key.is_empty() { vec![0] } else { key.clone() };
        // These releases judge a watch from a key on as one of the key alone.
        if end == [0] {
            self.need(Type::Read, point(&read), Origin::Plain);
            let span = Span { key: read, end: end.clone() };
            self.need(Type::Read, span, Origin::Bug(Bug::WatchFromKey));
        } else {
            self.need(Type::Read, Span { key: read, end: end.clone() }, Origin::Plain);
        }
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            prev_kv: self.dice.once_in(2),
            progress_notify: self.dice.once_in(4),
            ..Default::default()
        };
        let create = watch_request::RequestUnion::CreateRequest(create);
        self.done(Rpc::Watch, &pb::WatchRequest { request_union: Some(create) }, b"")
    }

    fn session(&mut self) -> Request {
        let key = self.dice.key(1);
        if self.dice.once_in(2) {
            self.need(Type::Write, point(&key), Origin::Plain);
            return self.done(Rpc::Unlock, &UnlockRequest { key: key.into() }, b"");
        }
        let below = [&key[..], b"/"].concat();
        self.need(Type::Read, Span { end: prefix_end(&below), key: below }, Origin::Plain);
        self.done(Rpc::Leader, &LeaderRequest { name: key.into() }, b"")
    }

    fn lease_call(&mut self) -> Request {
        match self.dice.below(3) {
            0 => self.done(Rpc::LeaseGrant, &pb::LeaseGrantRequest { ttl: 60, id: 0 }, b""),
            1 => {
                self.never(Stricter::LeaseId);
                let id = 7000 + i64::from(self.dice.once_in(2));
                self.done(Rpc::LeaseGrant, &pb::LeaseGrantRequest { ttl: 60, id }, b"")
            }
            _ => {
                self.never(Stricter::LeaseWithoutKeys);
                self.done(Rpc::LeaseRevoke, &pb::LeaseRevokeRequest { id: NO_LEASE }, b"")
            }
        }
    }

    fn store_call(&mut self, asker: &User) -> Request {
        let users = self.users;
        let name = users[self.dice.below(users.len())].name.clone();
        let admin = |origin| (Demand::Admin, origin);
        match self.dice.below(14) {
            0 => self.done(Rpc::MemberList, &pb::MemberListRequest::default(), b""),
            1 => self.done(Rpc::Status, &pb::StatusRequest::default(), b""),
            2 => self.done(Rpc::Alarm, &pb::AlarmRequest::default(), b""),
            3 => {
                self.needs.push(admin(Origin::Bug(Bug::Unguarded)));
                let request = pb::AlarmRequest { action: 2, member_id: 1, alarm: 1 };
                self.done(Rpc::Alarm, &request, b"")
            }
            4 => {
                self.needs.push(admin(Origin::Bug(Bug::Unguarded)));
                let request = pb::CompactionRequest { revision: FAR_REVISION, physical: false };
                self.done(Rpc::Compact, &request, b"")
            }
            5 | 6 => {
                let own = name == asker.name || self.dice.once_in(3);
                let name = if own { asker.name.clone() } else { name };
                let origin = if own { Origin::Stricter(Stricter::OwnUser) } else { Origin::Plain };
                self.needs.push(admin(origin));
                if self.dice.once_in(2) {
                    self.done(Rpc::UserGet, &pb::AuthUserGetRequest { name }, b"")
                } else {
                    self.done(Rpc::RoleGet, &pb::AuthRoleGetRequest { role: name }, b"")
                }
            }
            7 if self.line != "3.4" => {
                self.needs.push(admin(Origin::Stricter(Stricter::OwnUser)));
                self.done(Rpc::AuthStatus, &pb::AuthStatusRequest {}, b"")
            }
            8 => {
                let password = "wrong".to_owned();
                self.done(Rpc::Authenticate, &pb::AuthenticateRequest { name, password }, b"")
            }
            9 => {
                self.needs.push(admin(Origin::Bug(Bug::Maintenance)));
                self.done(Rpc::MoveLeader, &pb::MoveLeaderRequest { target_id: 1 }, b"")
            }
            _ => {
                self.needs.push(admin(Origin::Plain));
                self.admin_call(name)
            }
        }
    }

    /// What root may do; from root, too, it does no harm.
    fn admin_call(&mut self, name: String) -> Request {
        match self.dice.below(8) {
            0 => self.done(Rpc::UserList, &pb::AuthUserListRequest {}, b""),
            1 => self.done(Rpc::RoleList, &pb::AuthRoleListRequest {}, b""),
            2 => self.done(Rpc::RoleAdd, &pb::AuthRoleAddRequest { name }, b""),
            3 => self.done(Rpc::UserDelete, &pb::AuthUserDeleteRequest { name: "x".into() }, b""),
            4 => self.done(Rpc::MemberRemove, &pb::MemberRemoveRequest { id: 1 }, b""),
            5 => self.done(Rpc::HashKv, &pb::HashKvRequest::default(), b""),
            6 => self.done(Rpc::Hash, &pb::HashRequest {}, b""),
            _ => self.done(Rpc::Snapshot, &pb::SnapshotRequest {}, b""),
        }
    }
}

fn point(key: &[u8]) -> Span {
    Span { key: key.to_vec(), end: Vec::new() }
}

/// Whether it keeps a value, or a lease, of what it deletes by an endless range: no release
/// outlives it (src/etcd/touch/rewrite.rs; case 49 of the attacks). One that runs only one of the
/// two counts, too: it is not worth a second thought here.
fn ends_every_etcd(request: &pb::TxnRequest) -> bool {
    let (mut deleted, mut kept) = (Vec::new(), Vec::new());
    let mut left = vec![request];
    while let Some(txn) = left.pop() {
        for operation in txn.success.iter().chain(&txn.failure) {
            match operation.request.as_ref().unwrap() {
                request_op::Request::RequestTxn(inner) => left.push(inner),
                request_op::Request::RequestDeleteRange(delete) if delete.range_end == "\0" => {
                    deleted.push(&delete.key);
                }
                request_op::Request::RequestPut(put) if put.ignore_value || put.ignore_lease => {
                    kept.push(&put.key);
                }
                _ => {}
            }
        }
    }
    deleted.iter().any(|from| kept.iter().any(|key| key >= from))
}

const fn operation(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}
