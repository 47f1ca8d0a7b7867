//! The verbs a rule can allow or deny: five on keys, the others on the store as a whole.

use std::fmt;

use super::LeaseUse;

/// What a watch stream asks that needs no verb of its own: to end one of its watches.
pub const WATCH_CANCEL: &str = "watch.cancel";
/// And to be told how far its watches are.
pub const WATCH_PROGRESS: &str = "watch.progress";

/// What touches can be named by. `lease`, a word of the policy, is not among them: a touch says which use it is.
pub fn touch_verbs() -> impl Iterator<Item = &'static str> {
    let keys = KeyVerb::ALL.iter().map(|verb| verb.name());
    let stores = StoreVerb::ALL.iter().filter(|verb| **verb != StoreVerb::Lease);
    let leases = LeaseUse::ALL.iter().map(|usage| usage.name());
    keys.chain(leases).chain(stores.map(|verb| verb.name())).chain([WATCH_CANCEL, WATCH_PROGRESS])
}

/// What is done to a key or a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyVerb {
    /// Read one key.
    Get,
    /// Read a range of keys.
    List,
    /// Follow the changes of a key or a range.
    Watch,
    /// Write one key.
    Put,
    /// Delete a key or a range.
    Delete,
}

impl KeyVerb {
    /// Every key verb, in the order of their indexes.
    pub const ALL: [Self; 5] = [Self::Get, Self::List, Self::Watch, Self::Put, Self::Delete];

    /// The name used in policy files and audit records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }

    /// The verb of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }
}

impl fmt::Display for KeyVerb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

macro_rules! store_verbs {
    ($($variant:ident => $name:literal, $meaning:literal;)+) => {
        /// What is done to the store as a whole; such verbs stand in rules without a key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum StoreVerb {
            $(#[doc = $meaning] $variant,)+
        }

        impl StoreVerb {
            /// Every store verb.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name used in policy files and audit records.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

store_verbs! {
    Lease => "lease", "Grant leases and use one's own.";
    Compact => "compact", "Compact the history.";
    Status => "status", "Read a member's status.";
    MemberList => "member.list", "List the members.";
    MemberChange => "member.change", "Add, remove, update or promote members.";
    AlarmGet => "alarm.get", "Read alarms.";
    AlarmSet => "alarm.set", "Raise or clear alarms.";
    Hash => "hash", "Read hashes of the whole store.";
    Snapshot => "snapshot", "Read the whole database.";
    Defragment => "defragment", "Defragment a member's database.";
    MoveLeader => "move-leader", "Move the leadership.";
    Downgrade => "downgrade", "Validate, enable or cancel a downgrade.";
    AuthLogin => "auth.login", "Exchange a password for a token.";
    AuthRead => "auth.read", "Read users, roles and the state of authentication.";
    AuthChange => "auth.change", "Change users, roles and the state of authentication.";
    Health => "health", "Ask whether a member serves.";
    Version => "version", "Read a member's version.";
    Metrics => "metrics", "Read a member's metrics.";
}

impl StoreVerb {
    /// The verb of that name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verb| verb.name() == name)
    }
}

impl fmt::Display for StoreVerb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
