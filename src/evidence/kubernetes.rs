//! Keys of a Kubernetes API server as resource, namespace and name, for people. Only a key of exactly the shape
//! that an API server writes is named so; any other stays as it is: tenants choose keys.
//!
//! Pure. The shapes are those of `k8s.io/apiserver/pkg/registry/generic/registry/store.go`
//! (`NamespaceKeyFunc`) and of the few resources that have an older place.

use serde::Serialize;

use super::keys::{Keys, KeysEnd};

/// An object, or all objects of a resource or namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Objects {
    /// Such as `secrets`; of a custom resource with its group, `certificates.cert-manager.io`.
    pub resource: String,
    /// Absent when the resource has none, or all are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Absent when all are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Objects {
    /// What the keys are under the API server's prefix, such as `/registry`.
    #[must_use]
    pub fn of(prefix: &str, keys: &Keys) -> Option<Self> {
        let Keys { start, start_is_cut: false, end, end_is_cut: false, .. } = keys else {
            return None;
        };
        let key = std::str::from_utf8(start).ok()?;
        let rest = key.strip_prefix(prefix.trim_end_matches('/'))?.strip_prefix('/')?;
        let all = match end {
            KeysEnd::Point => false,
            // A list is from `.../` to `...0`, which is what follows it.
            KeysEnd::Before(end) if rest.ends_with('/') => {
                let mut behind = start.clone();
                *behind.last_mut()? = b'0';
                (behind == *end).then_some(true)?
            }
            KeysEnd::Before(_) | KeysEnd::Infinity => return None,
        };
        let (resource, rest) = resource(if all { rest.strip_suffix('/')? } else { rest })?;
        let parts: Vec<&str> = rest.split('/').filter(|_| !rest.is_empty()).collect();
        if !parts.iter().all(|part| is_name(part)) {
            return None;
        }
        let (namespace, name) = match (parts.as_slice(), all) {
            ([], true) => (None, None),
            ([namespace], true) => (Some(*namespace), None),
            ([name], false) => (None, Some(*name)),
            ([namespace, name], false) => (Some(*namespace), Some(*name)),
            _ => return None,
        };
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Some(Self { resource, namespace: owned(namespace), name: owned(name) })
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut shown = self.resource.clone();
        for (label, part) in [("namespace", &self.namespace), ("name", &self.name)] {
            if let Some(part) = part {
                shown.push_str(&format!(" {label}={part}"));
            }
        }
        shown
    }
}

/// The resource that a key begins with, and what follows.
fn resource(rest: &str) -> Option<(String, &str)> {
    let (first, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (second, behind) = rest.split_once('/').unwrap_or((rest, ""));
    if !is_name(first) {
        return None;
    }
    match (first, second) {
        ("services", "specs") => Some(("services".to_owned(), behind)),
        ("services", "endpoints") => Some(("endpoints".to_owned(), behind)),
        ("minions", _) => Some(("nodes".to_owned(), rest)),
        // A group: `/registry/GROUP/RESOURCE/...`
        (group, resource) if group.contains('.') => {
            is_name(resource).then(|| (format!("{resource}.{group}"), behind))
        }
        (resource, _) => Some((resource.to_owned(), rest)),
    }
}

/// What may be a name in a path; nothing of it can be taken for a label of ours.
fn is_name(part: &str) -> bool {
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    !part.is_empty() && part.bytes().all(may_be)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(start: &str, end: KeysEnd) -> Keys {
        let start = start.as_bytes().to_vec();
        Keys { start, start_is_cut: false, digest: None, end, end_is_cut: false }
    }

    fn check(start: &str, end: Option<&str>, expected: Option<&str>) {
        let end = end.map_or(KeysEnd::Point, |end| KeysEnd::Before(end.as_bytes().to_vec()));
        let keys = keys(start, end);
        let shown = Objects::of("/registry", &keys).map(|objects| objects.shown());
        assert_eq!(shown.as_deref(), expected, "{start}");
        assert_eq!(Objects::of("/registry/", &keys).map(|objects| objects.shown()), shown);
        assert_eq!(Objects::of("/other", &keys), None);
    }

    #[test]
    fn a_key_of_an_api_server_is_resource_namespace_and_name() {
        let token = "secrets namespace=kube-system name=token";
        check("/registry/secrets/kube-system/token", None, Some(token));
        check("/registry/namespaces/acme", None, Some("namespaces name=acme"));
        check("/registry/minions/n1", None, Some("nodes name=n1"));
        check("/registry/services/specs/a/b", None, Some("services namespace=a name=b"));
        check("/registry/services/endpoints/a/b", None, Some("endpoints namespace=a name=b"));
        let role = "/registry/clusterroles/system:node";
        check(role, None, Some("clusterroles name=system:node"));
        let custom = "certificates.cert-manager.io namespace=a name=b";
        check("/registry/cert-manager.io/certificates/a/b", None, Some(custom));
    }

    #[test]
    fn a_list_is_all_of_a_resource_or_a_namespace() {
        check("/registry/secrets/", Some("/registry/secrets0"), Some("secrets"));
        let of_namespace = Some("secrets namespace=a");
        check("/registry/secrets/a/", Some("/registry/secrets/a0"), of_namespace);
        let of_group = Some("certificates.cert-manager.io");
        let end = "/registry/cert-manager.io/certificates0";
        check("/registry/cert-manager.io/certificates/", Some(end), of_group);
        // Wider, or narrower, than what it would be called.
        check("/registry/secrets/", Some("/registry/t"), None);
        check("/registry/secrets/a/x", Some("/registry/secrets/a0"), None);
        check("/registry/", Some("/registry0"), None);
        check("/registry/cert-manager.io/", Some("/registry/cert-manager.io0"), None);
        let keys = keys("/registry/a/", KeysEnd::Infinity);
        assert_eq!(Objects::of("/registry", &keys), None);
    }

    /// The attack: a key whose name reads like another namespace or object.
    #[test]
    fn a_key_that_no_api_server_writes_stays_as_it_is() {
        for key in [
            "/registry/secrets/a name=b",
            "/registry/secrets/a/b/c",
            "/registry/secrets/a/",
            "/registry/secrets//b",
            "/registry//a/b",
            "/registry/secrets/a/b\u{202e}",
            "/registry/secrets",
            "/registrysecrets/a/b",
            "/registry",
            "",
        ] {
            check(key, None, None);
        }
        let cut = Keys { start_is_cut: true, ..keys("/registry/secrets/a/b", KeysEnd::Point) };
        assert_eq!(Objects::of("/registry", &cut), None);
    }
}
