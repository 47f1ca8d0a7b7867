//! The requests that name no key and no lease: which message each RPC carries, and the verb on the
//! store as a whole that it needs. Enum numbers that no etcd knows are refused here.

use bytes::Bytes;

use super::{Malformed, read as decoded};
use crate::etcd::catalog::{Demand, Rpc};
use crate::etcd::pb::authpb::permission;
use crate::etcd::pb::etcdserverpb::{
    AlarmRequest, AlarmType, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest,
    AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest, AuthRoleListRequest,
    AuthRoleRevokePermissionRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
    CompactionRequest, DefragmentRequest, DowngradeRequest, HashKvRequest, HashRequest,
    LeaseLeasesRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, SnapshotRequest, StatusRequest,
    alarm_request, downgrade_request,
};
use crate::etcd::pb::grpc_health_v1::{HealthCheckRequest, HealthListRequest};
use crate::etcd::touch::InvalidRequest;
use crate::etcd::verb::StoreVerb;

macro_rules! messages {
    ($($rpc:ident $message:ty $(, $check:expr)?;)+) => {
        /// The canonical bytes of a request, and the verb it needs.
        pub(super) fn read(rpc: Rpc, bytes: &Bytes) -> Result<(Bytes, StoreVerb), Malformed> {
            let mut verb = match rpc.entry().demand {
                Demand::Store(verb) => Some(verb),
                Demand::AlarmAction | Demand::Keys => None,
            };
            let body = match rpc {
                $(Rpc::$rpc => decoded(bytes, |_request: &$message| {
                    $(verb = $check(_request)?.or(verb);)?
                    Ok(())
                })?,)+
                // Those that name keys or a lease are read by the caller.
                Rpc::Range
                | Rpc::RangeStream
                | Rpc::Put
                | Rpc::DeleteRange
                | Rpc::Txn
                | Rpc::Watch
                | Rpc::LeaseGrant
                | Rpc::LeaseRevoke
                | Rpc::LeaseKeepAlive
                | Rpc::LeaseTimeToLive
                | Rpc::Lock
                | Rpc::Unlock
                | Rpc::Campaign
                | Rpc::Proclaim
                | Rpc::Leader
                | Rpc::Observe
                | Rpc::Resign => return Err(Malformed::Undecodable),
            };
            verb.map(|verb| (body, verb)).ok_or(Malformed::Undecodable)
        }

        /// The RPCs of this table; a test holds it against the catalog.
        #[cfg(test)]
        pub(super) fn table() -> Vec<(Rpc, String)> {
            use prost::Name;
            vec![$((Rpc::$rpc, <$message>::full_name()),)+]
        }
    };
}

messages! {
    Compact CompactionRequest;
    LeaseLeases LeaseLeasesRequest;
    MemberAdd MemberAddRequest;
    MemberRemove MemberRemoveRequest;
    MemberUpdate MemberUpdateRequest;
    MemberList MemberListRequest;
    MemberPromote MemberPromoteRequest;
    Alarm AlarmRequest, alarm;
    Status StatusRequest;
    Defragment DefragmentRequest;
    Hash HashRequest;
    HashKv HashKvRequest;
    Snapshot SnapshotRequest;
    MoveLeader MoveLeaderRequest;
    Downgrade DowngradeRequest, downgrade;
    AuthEnable AuthEnableRequest;
    AuthDisable AuthDisableRequest;
    AuthStatus AuthStatusRequest;
    Authenticate AuthenticateRequest;
    UserAdd AuthUserAddRequest;
    UserGet AuthUserGetRequest;
    UserList AuthUserListRequest;
    UserDelete AuthUserDeleteRequest;
    UserChangePassword AuthUserChangePasswordRequest;
    UserGrantRole AuthUserGrantRoleRequest;
    UserRevokeRole AuthUserRevokeRoleRequest;
    RoleAdd AuthRoleAddRequest;
    RoleGet AuthRoleGetRequest;
    RoleList AuthRoleListRequest;
    RoleDelete AuthRoleDeleteRequest;
    RoleGrantPermission AuthRoleGrantPermissionRequest, grant_permission;
    RoleRevokePermission AuthRoleRevokePermissionRequest;
    HealthCheck HealthCheckRequest;
    HealthList HealthListRequest;
    HealthWatch HealthCheckRequest;
}

/// An alarm of an unknown type makes a member that applies it end itself (server/etcdserver/apply).
fn alarm(request: &AlarmRequest) -> Result<Option<StoreVerb>, InvalidRequest> {
    let action = alarm_request::AlarmAction::try_from(request.action);
    if AlarmType::try_from(request.alarm).is_err() {
        return Err(InvalidRequest::UnknownNumber("alarm"));
    }
    match action {
        Ok(alarm_request::AlarmAction::Get) => Ok(Some(StoreVerb::AlarmGet)),
        Ok(alarm_request::AlarmAction::Activate | alarm_request::AlarmAction::Deactivate) => {
            Ok(Some(StoreVerb::AlarmSet))
        }
        Err(_) => Err(InvalidRequest::UnknownNumber("action")),
    }
}

fn downgrade(request: &DowngradeRequest) -> Result<Option<StoreVerb>, InvalidRequest> {
    let known = downgrade_request::DowngradeAction::try_from(request.action);
    known.map(|_| None).map_err(|_| InvalidRequest::UnknownNumber("action"))
}

fn grant_permission(
    request: &AuthRoleGrantPermissionRequest,
) -> Result<Option<StoreVerb>, InvalidRequest> {
    let kind = request.perm.as_ref().map_or(0, |permission| permission.perm_type);
    let known = permission::Type::try_from(kind);
    known.map(|_| None).map_err(|_| InvalidRequest::UnknownNumber("permType"))
}

#[cfg(test)]
mod tests;
