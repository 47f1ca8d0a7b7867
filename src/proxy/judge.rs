//! The open connections of one core. What let them in is judged again when it changes: with a new generation, with a
//! revocation, and by the clock. Each is told what holds from now on; to end is its own business and its streams'.
//!
//! It never makes a judgement milder than a new connection would get.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use super::Core;
use super::connection::{Client, Identified};
use super::ending::Ending;
use crate::audit::ConnectionId;
use crate::identity::CertificateFacts;
use crate::tls::material::validity_seconds;
use crate::tls::verifier::{Doubt, doubt};

/// After so many judgements others have a turn.
const JUDGED_AT_ONCE: usize = 16;
/// Clients that may connect again do so in so many steps, so long apart.
const SPREAD_STEPS: usize = 20;
const SPREAD_STEP: Duration = Duration::from_millis(20);

/// One core, and what it serves.
#[derive(Debug)]
pub struct Hub {
    core: RefCell<Rc<Core>>,
    members: RefCell<HashMap<ConnectionId, Weak<Member>>>,
    /// Up to when it was looked for what ends, in seconds since 1970.
    looked_seconds: Cell<i64>,
}

/// An open connection, with what let it in.
#[derive(Debug)]
pub(super) struct Member {
    connection: ConnectionId,
    shown: Shown,
    /// When the next certificate of the chain ends, in seconds since 1970.
    ends_seconds: Cell<i64>,
    client: watch::Sender<Rc<Client>>,
}

/// A chain that a client has shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) leaf: CertificateDer<'static>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
}

/// Each judgement of a connection that comes after one of them.
#[derive(Debug)]
pub(super) struct Judgements {
    known: Rc<Client>,
    changes: watch::Receiver<Rc<Client>>,
}

impl Hub {
    /// A hub without connections.
    #[must_use]
    pub fn new(core: Core) -> Self {
        let looked_seconds = Cell::new(i64::MAX);
        Self { core: RefCell::new(Rc::new(core)), members: RefCell::default(), looked_seconds }
    }

    /// What holds for who connects now.
    #[must_use]
    pub fn core(&self) -> Rc<Core> {
        Rc::clone(&self.core.borrow())
    }

    /// Has another generation hold, for new connections at once and then for each that is open.
    pub async fn adopt(self: &Rc<Self>, core: Core, now: impl Fn() -> Duration + 'static) {
        self.core.replace(Rc::new(core));
        let mut moving = Vec::new();
        for (count, member) in self.members().into_iter().enumerate() {
            let Some(member) = member.upgrade() else { continue };
            let core = self.core();
            if let Some(client) = member.judge(&core, now()) {
                // Who is somebody else now may come again at once; who is nobody may not.
                if matches!(client.ending, Some(Ending::IdentityChanged)) {
                    moving.push(Rc::downgrade(&member));
                } else {
                    member.tell(client);
                }
            }
            drop(member);
            if count % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        if !moving.is_empty() {
            // In a task of its own: the next generation must not wait for it.
            tokio::task::spawn_local(Rc::clone(self).spread(moving, now));
        }
    }

    /// Has clients connect again, some at a time.
    async fn spread(self: Rc<Self>, moving: Vec<Weak<Member>>, now: impl Fn() -> Duration) {
        for some in moving.chunks(moving.len().div_ceil(SPREAD_STEPS)) {
            for member in some.iter().filter_map(Weak::upgrade) {
                if let Some(client) = member.judge(&self.core(), now()) {
                    member.tell(client);
                }
            }
            tokio::time::sleep(SPREAD_STEP).await;
        }
    }

    /// Ends those whose certificates have expired, and those for whom nobody can vouch any more because a revocation
    /// list is past its time.
    pub fn expire(&self, now: Duration) {
        let seconds = seconds(now);
        let core = self.core();
        let looked = self.looked_seconds.replace(seconds);
        let lapses = core.revocation.lapses_between(looked, seconds);
        let due: Vec<Rc<Member>> = {
            let members = self.members.borrow();
            let members = members.values().filter_map(Weak::upgrade);
            members.filter(|member| lapses || member.ends_seconds.get() < seconds).collect()
        };
        for member in due {
            if let Some(client) = member.judge_chain(&core, now) {
                member.tell(client);
            }
        }
    }

    /// Tells every connection that ringfence ends.
    pub fn drain(&self) {
        for member in self.members() {
            let Some(member) = member.upgrade() else { continue };
            let before = member.client();
            if before.ending.is_none() {
                member.tell(Client { ending: Some(Ending::Drained), ..Client::clone(&before) });
            }
        }
    }

    fn members(&self) -> Vec<Weak<Member>> {
        let mut members = self.members.borrow_mut();
        members.retain(|_, member| member.strong_count() > 0);
        let mut members: Vec<_> = members.iter().collect();
        members.sort_unstable_by_key(|(connection, _)| connection.0);
        members.into_iter().map(|(_, member)| Weak::clone(member)).collect()
    }

    /// Takes a connection in; it leaves when the member is dropped.
    pub(super) fn join(&self, shown: Shown, client: Client) -> Rc<Member> {
        let connection = client.connection;
        let member = Rc::new_cyclic(|member| Member {
            connection,
            ends_seconds: Cell::new(shown.ends_seconds(i64::MIN)),
            shown,
            client: watch::Sender::new(Rc::new(Client { member: Weak::clone(member), ..client })),
        });
        self.members.borrow_mut().insert(connection, Rc::downgrade(&member));
        member
    }

    /// Forgets a connection that has ended.
    pub(super) fn leave(&self, connection: ConnectionId) {
        self.members.borrow_mut().remove(&connection);
    }
}

impl Member {
    /// What holds for its calls now.
    pub(super) fn client(&self) -> Rc<Client> {
        Rc::clone(&self.client.borrow())
    }

    fn tell(&self, client: Client) {
        if let Some(ending) = client.ending {
            tracing::info!(
                connection = self.connection.0,
                principal = self.client.borrow().name(),
                reason = ending.name(),
                "a connection ends"
            );
        }
        self.client.send_replace(Rc::new(client));
    }

    /// What holds from now on, if the connection does not end anyhow.
    fn judge(&self, core: &Rc<Core>, now: Duration) -> Option<Client> {
        let before = self.client();
        let ends_anyhow = before.ending.is_some();
        if before.ending.is_some_and(Ending::ends_a_right) {
            return None;
        }
        let known = before.core.acceptor.authorities();
        let authorities = core.acceptor.authorities();
        let mut authority = before.authority.clone();
        if !std::sync::Arc::ptr_eq(known, authorities) {
            match self.shown.verify(core, now) {
                Ok(name) => authority = name,
                Err(ending) => return Some(before.ended(core, ending)),
            }
        }
        let facts = CertificateFacts::read(&self.shown.leaf);
        let identified = Identified::find(core, &authority, facts.as_ref());
        let ending = match (&before.identified, &identified) {
            (Ok(was), Ok(is)) => (!was.is_same(is)).then_some(Ending::IdentityChanged),
            (Ok(_), Err(_)) => Some(Ending::IdentityRemoved),
            (Err(_), Ok(_)) => Some(Ending::IdentityChanged),
            (Err(_), Err(_)) => None,
        };
        if let Some(ending) = ending {
            return Some(before.ended(core, ending));
        }
        let next =
            Client { core: Rc::clone(core), identified, authority, ..Client::clone(&before) };
        (!ends_anyhow).then_some(next)
    }

    /// The same for the chain alone, when one of its certificates has ended: one that nobody needs may.
    fn judge_chain(&self, core: &Rc<Core>, now: Duration) -> Option<Client> {
        let before = self.client();
        if before.ending.is_some_and(Ending::ends_a_right) {
            return None;
        }
        self.ends_seconds.set(self.shown.ends_seconds(seconds(now)));
        let ending = self.shown.verify(core, now).err()?;
        Some(before.ended(core, ending))
    }
}

impl Shown {
    /// The CA that vouches for the chain, by what holds now; or why the connection ends.
    pub(super) fn verify(&self, core: &Core, now: Duration) -> Result<std::sync::Arc<str>, Ending> {
        let now = UnixTime::since_unix_epoch(now);
        let authorities = core.acceptor.authorities();
        authorities.verify(&self.leaf, &self.intermediates, now).map_err(|error| {
            match doubt(&error) {
                Doubt::Revoked => Ending::CertificateRevoked,
                Doubt::Expired => Ending::CertificateExpired,
                Doubt::Other => Ending::CertificateUntrusted,
            }
        })
    }

    /// When the next certificate ends of those that have not by then.
    fn ends_seconds(&self, by: i64) -> i64 {
        let chain = std::iter::once(&self.leaf).chain(&self.intermediates);
        let ends = chain.filter_map(|certificate| validity_seconds(certificate));
        ends.map(|(_, end)| end).filter(|end| *end >= by).min().unwrap_or(i64::MAX)
    }
}

impl Judgements {
    /// Those after the one that `client` is.
    pub(super) fn after(client: &Rc<Client>) -> Self {
        let changes = match client.member.upgrade() {
            Some(member) => member.client.subscribe(),
            None => watch::channel(Rc::clone(client)).1,
        };
        Self { known: Rc::clone(client), changes }
    }

    /// The next one; never, when the connection has ended.
    pub(super) async fn next(&mut self) -> Rc<Client> {
        loop {
            let now = Rc::clone(&self.changes.borrow_and_update());
            if !Rc::ptr_eq(&now, &self.known) {
                self.known = Rc::clone(&now);
                return now;
            }
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
