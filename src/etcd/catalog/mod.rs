//! Every RPC of etcd 3.4 to 3.7, and the only source of gRPC paths: what is not in this table is
//! refused, and what is forwarded takes its path from here, never from the client.

use super::verb::StoreVerb;

/// How many messages go each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one response.
    Unary,
    /// One request, a stream of responses.
    ServerStream,
    /// A stream both ways.
    Bidirectional,
}

/// The oldest etcd release line that serves an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Since {
    /// etcd 3.4 or older.
    V3_4,
    /// etcd 3.5.
    V3_5,
    /// etcd 3.7.
    V3_7,
}

/// What a caller must hold for an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Key verbs on the keys that the request names.
    Keys,
    /// One store verb.
    Store(StoreVerb),
    /// `alarm.get` for action GET, `alarm.set` for every other action.
    AlarmAction,
}

/// One row of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The gRPC path, byte for byte.
    pub path: &'static str,
    /// How many messages go each way.
    pub shape: Shape,
    /// What a caller must hold.
    pub demand: Demand,
    /// The first release line that serves it.
    pub since: Since,
}

macro_rules! catalog {
    ($($rpc:ident $path:literal $shape:ident $since:ident $demand:expr;)+) => {
        /// One variant per RPC; a new one breaks every exhaustive match until it is thought about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rpc {
            $(#[doc = concat!("`", $path, "`")] $rpc,)+
        }

        impl Rpc {
            /// Every RPC, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$rpc,)+];

            /// The RPC whose path is exactly `path`. No decoding, no normalising: `%52ange`,
            /// `//etcdserverpb...` and a query string are other paths, so that what is
            /// looked up here is never something else to etcd.
            #[must_use]
            pub fn from_path(path: &str) -> Option<Self> {
                match path {
                    $($path => Some(Self::$rpc),)+
                    _ => None,
                }
            }

            /// The row of the table.
            #[must_use]
            pub const fn entry(self) -> Entry {
                match self {
                    $(Self::$rpc => Entry {
                        path: $path,
                        shape: Shape::$shape,
                        demand: $demand,
                        since: Since::$since,
                    },)+
                }
            }

            /// The position in [`Rpc::ALL`], for tables with a row per RPC.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

use Demand::{AlarmAction, Keys, Store};
use StoreVerb::{
    AuthChange, AuthLogin, AuthRead, Compact as CompactVerb, Defragment as DefragmentVerb,
    Downgrade as DowngradeVerb, Hash as HashVerb, Health, Lease, MemberChange,
    MemberList as MemberListVerb, MoveLeader as MoveLeaderVerb, Snapshot as SnapshotVerb,
    Status as StatusVerb,
};

catalog! {
    Range               "/etcdserverpb.KV/Range"                      Unary         V3_4 Keys;
    Put                 "/etcdserverpb.KV/Put"                        Unary         V3_4 Keys;
    DeleteRange         "/etcdserverpb.KV/DeleteRange"                Unary         V3_4 Keys;
    Txn                 "/etcdserverpb.KV/Txn"                        Unary         V3_4 Keys;
    Compact             "/etcdserverpb.KV/Compact"                    Unary         V3_4 Store(CompactVerb);
    RangeStream         "/etcdserverpb.KV/RangeStream"                ServerStream  V3_7 Keys;
    Watch               "/etcdserverpb.Watch/Watch"                   Bidirectional V3_4 Keys;
    LeaseGrant          "/etcdserverpb.Lease/LeaseGrant"              Unary         V3_4 Store(Lease);
    LeaseRevoke         "/etcdserverpb.Lease/LeaseRevoke"             Unary         V3_4 Store(Lease);
    LeaseKeepAlive      "/etcdserverpb.Lease/LeaseKeepAlive"          Bidirectional V3_4 Store(Lease);
    LeaseTimeToLive     "/etcdserverpb.Lease/LeaseTimeToLive"         Unary         V3_4 Store(Lease);
    LeaseLeases         "/etcdserverpb.Lease/LeaseLeases"             Unary         V3_4 Store(Lease);
    MemberAdd           "/etcdserverpb.Cluster/MemberAdd"             Unary         V3_4 Store(MemberChange);
    MemberRemove        "/etcdserverpb.Cluster/MemberRemove"          Unary         V3_4 Store(MemberChange);
    MemberUpdate        "/etcdserverpb.Cluster/MemberUpdate"          Unary         V3_4 Store(MemberChange);
    MemberList          "/etcdserverpb.Cluster/MemberList"            Unary         V3_4 Store(MemberListVerb);
    MemberPromote       "/etcdserverpb.Cluster/MemberPromote"         Unary         V3_4 Store(MemberChange);
    Alarm               "/etcdserverpb.Maintenance/Alarm"             Unary         V3_4 AlarmAction;
    Status              "/etcdserverpb.Maintenance/Status"            Unary         V3_4 Store(StatusVerb);
    Defragment          "/etcdserverpb.Maintenance/Defragment"        Unary         V3_4 Store(DefragmentVerb);
    Hash                "/etcdserverpb.Maintenance/Hash"              Unary         V3_4 Store(HashVerb);
    HashKv              "/etcdserverpb.Maintenance/HashKV"            Unary         V3_4 Store(HashVerb);
    Snapshot            "/etcdserverpb.Maintenance/Snapshot"          ServerStream  V3_4 Store(SnapshotVerb);
    MoveLeader          "/etcdserverpb.Maintenance/MoveLeader"        Unary         V3_4 Store(MoveLeaderVerb);
    Downgrade           "/etcdserverpb.Maintenance/Downgrade"         Unary         V3_5 Store(DowngradeVerb);
    AuthEnable          "/etcdserverpb.Auth/AuthEnable"               Unary         V3_4 Store(AuthChange);
    AuthDisable         "/etcdserverpb.Auth/AuthDisable"              Unary         V3_4 Store(AuthChange);
    AuthStatus          "/etcdserverpb.Auth/AuthStatus"               Unary         V3_5 Store(AuthRead);
    Authenticate        "/etcdserverpb.Auth/Authenticate"             Unary         V3_4 Store(AuthLogin);
    UserAdd             "/etcdserverpb.Auth/UserAdd"                  Unary         V3_4 Store(AuthChange);
    UserGet             "/etcdserverpb.Auth/UserGet"                  Unary         V3_4 Store(AuthRead);
    UserList            "/etcdserverpb.Auth/UserList"                 Unary         V3_4 Store(AuthRead);
    UserDelete          "/etcdserverpb.Auth/UserDelete"               Unary         V3_4 Store(AuthChange);
    UserChangePassword  "/etcdserverpb.Auth/UserChangePassword"       Unary         V3_4 Store(AuthChange);
    UserGrantRole       "/etcdserverpb.Auth/UserGrantRole"            Unary         V3_4 Store(AuthChange);
    UserRevokeRole      "/etcdserverpb.Auth/UserRevokeRole"           Unary         V3_4 Store(AuthChange);
    RoleAdd             "/etcdserverpb.Auth/RoleAdd"                  Unary         V3_4 Store(AuthChange);
    RoleGet             "/etcdserverpb.Auth/RoleGet"                  Unary         V3_4 Store(AuthRead);
    RoleList            "/etcdserverpb.Auth/RoleList"                 Unary         V3_4 Store(AuthRead);
    RoleDelete          "/etcdserverpb.Auth/RoleDelete"               Unary         V3_4 Store(AuthChange);
    RoleGrantPermission "/etcdserverpb.Auth/RoleGrantPermission"      Unary         V3_4 Store(AuthChange);
    RoleRevokePermission "/etcdserverpb.Auth/RoleRevokePermission"    Unary         V3_4 Store(AuthChange);
    Lock                "/v3lockpb.Lock/Lock"                         Unary         V3_4 Keys;
    Unlock              "/v3lockpb.Lock/Unlock"                       Unary         V3_4 Keys;
    Campaign            "/v3electionpb.Election/Campaign"             Unary         V3_4 Keys;
    Proclaim            "/v3electionpb.Election/Proclaim"             Unary         V3_4 Keys;
    Leader              "/v3electionpb.Election/Leader"               Unary         V3_4 Keys;
    Observe             "/v3electionpb.Election/Observe"              ServerStream  V3_4 Keys;
    Resign              "/v3electionpb.Election/Resign"               Unary         V3_4 Keys;
    HealthCheck         "/grpc.health.v1.Health/Check"                Unary         V3_4 Store(Health);
    HealthList          "/grpc.health.v1.Health/List"                 Unary         V3_7 Store(Health);
    HealthWatch         "/grpc.health.v1.Health/Watch"                ServerStream  V3_4 Store(Health);
}

impl Rpc {
    /// The gRPC path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        self.entry().path
    }

    /// Whether an answer may take as long as it likes: streams, and the calls that wait for others.
    #[must_use]
    pub const fn is_open_ended(self) -> bool {
        !matches!(self.entry().shape, Shape::Unary) || matches!(self, Self::Lock | Self::Campaign)
    }

    /// Whether it changes something, and answers as soon as it has. Of the two that wait, Lock and
    /// Campaign, the caller's going is the end.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(
            self,
            Self::Range
                | Self::RangeStream
                | Self::Watch
                | Self::LeaseKeepAlive
                | Self::LeaseTimeToLive
                | Self::LeaseLeases
                | Self::MemberList
                | Self::Status
                | Self::Hash
                | Self::HashKv
                | Self::Snapshot
                | Self::AuthStatus
                | Self::Authenticate
                | Self::UserGet
                | Self::UserList
                | Self::RoleGet
                | Self::RoleList
                | Self::Lock
                | Self::Campaign
                | Self::Leader
                | Self::Observe
                | Self::HealthCheck
                | Self::HealthList
                | Self::HealthWatch
        )
    }

    /// Whether its answer may hold values of keys, as many as the client asks for.
    #[must_use]
    pub const fn reads_values(self) -> bool {
        matches!(self, Self::Range | Self::RangeStream | Self::Put | Self::DeleteRange | Self::Txn)
    }

    /// Whether its answer, or the next message of it, comes only when others do something.
    #[must_use]
    pub const fn waits_for_others(self) -> bool {
        matches!(self, Self::Lock | Self::Campaign | Self::Observe | Self::HealthWatch)
    }
}

#[cfg(test)]
mod tests;
