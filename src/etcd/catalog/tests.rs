//! The catalog against the descriptors of `proto/`, and its paths byte for byte.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::*;

/// path -> (client streams, server streams), read from the compiled descriptors of `proto/`.
fn described_rpcs() -> BTreeMap<String, (bool, bool)> {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    let set = FileDescriptorSet::decode(&bytes[..]).unwrap();
    let mut rpcs = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                rpcs.insert(path, (method.client_streaming(), method.server_streaming()));
            }
        }
    }
    rpcs
}

#[test]
fn every_described_rpc_has_an_entry_and_every_entry_is_described() {
    let described = described_rpcs();
    assert!(described.len() > 40, "the descriptors were not read: {}", described.len());
    for (path, streams) in &described {
        let rpc = Rpc::from_path(path).unwrap_or_else(|| panic!("`{path}` is not in the catalog"));
        let expected = match rpc.entry().shape {
            Shape::Unary => (false, false),
            Shape::ServerStream => (false, true),
            Shape::Bidirectional => (true, true),
        };
        assert_eq!(*streams, expected, "shape of `{path}`");
    }
    for rpc in Rpc::ALL {
        assert!(described.contains_key(rpc.path()), "`{}` is in no .proto file", rpc.path());
    }
}

#[test]
fn a_path_is_matched_byte_for_byte() {
    assert_eq!(Rpc::from_path("/etcdserverpb.KV/Range"), Some(Rpc::Range));
    for path in [
        "etcdserverpb.KV/Range",
        "/etcdserverpb.KV/%52ange",
        "/etcdserverpb.KV%2FRange",
        "/etcdserverpb.KV/Range?x",
        "//etcdserverpb.KV/Range",
        "/x/../etcdserverpb.KV/Range",
        "/etcdserverpb.kv/range",
        "/etcdserverpb.KV/Range/",
        "/v3/kv/range",
        "",
    ] {
        assert_eq!(Rpc::from_path(path), None, "{path}");
    }
}

#[test]
fn an_index_is_the_position_in_the_table() {
    for (position, rpc) in Rpc::ALL.iter().enumerate() {
        assert_eq!(rpc.index(), position);
    }
}
