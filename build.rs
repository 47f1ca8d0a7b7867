//! Compiles `proto/` with protox (no protoc needed) and writes two files into OUT_DIR: the prost
//! messages, and `wire_shapes.rs`, the table the strict decoder walks (see `src/etcd/wire/mod.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

const FILES: [&str; 6] = [
    "etcdserverpb.proto",
    "mvccpb.proto",
    "authpb.proto",
    "v3lockpb.proto",
    "v3electionpb.proto",
    "grpc_health_v1.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    std::fs::write(out_dir.join("wire_shapes.rs"), wire_shapes(&descriptors)?)?;
    write_descriptor_set(&descriptors, &out_dir.join("descriptors.bin"))?;
    prost_build::Config::new()
        .bytes(["."])
        .enable_type_names()
        .out_dir(&out_dir)
        .compile_fds(descriptors)?;
    Ok(())
}

fn write_descriptor_set(set: &FileDescriptorSet, path: &Path) -> std::io::Result<()> {
    use prost::Message as _;
    std::fs::write(path, set.encode_to_vec())
}

/// One `MessageShape` per message, sorted by full name; fields refer to messages by index.
fn wire_shapes(set: &FileDescriptorSet) -> Result<String, Box<dyn std::error::Error>> {
    let mut messages = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages);
        }
    }
    let indexes: BTreeMap<&str, usize> =
        messages.keys().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut text = String::from("pub(crate) static MESSAGES: &[MessageShape] = &[\n");
    for (name, message) in &messages {
        writeln!(text, "    MessageShape {{ name: {name:?}, fields: &[")?;
        for field in &message.field {
            let kind = match field.r#type() {
                Type::Bool => "FieldKind::Bool".to_owned(),
                Type::Uint32 => "FieldKind::Uint32".to_owned(),
                Type::Int64 | Type::Uint64 => "FieldKind::Varint64".to_owned(),
                Type::Enum => "FieldKind::Enum".to_owned(),
                Type::String => "FieldKind::Text".to_owned(),
                Type::Bytes => "FieldKind::Bytes".to_owned(),
                Type::Message => {
                    let target = field.type_name().trim_start_matches('.');
                    let index =
                        indexes.get(target).ok_or_else(|| format!("unknown message {target}"))?;
                    format!("FieldKind::Message({index})")
                }
                other => return Err(format!("{name}: no wire rule for {other:?}").into()),
            };
            let repeated = field.label() == Label::Repeated;
            let oneof = field
                .oneof_index
                .map_or_else(|| "None".to_owned(), |index| format!("Some({index})"));
            writeln!(
                text,
                "        FieldShape {{ number: {}, name: {:?}, kind: {kind}, repeated: {repeated}, oneof: {oneof} }},",
                field.number(),
                field.name(),
            )?;
        }
        text.push_str("    ] },\n");
    }
    text.push_str("];\n");
    Ok(text)
}

fn collect<'a>(
    scope: &str,
    message: &'a DescriptorProto,
    messages: &mut BTreeMap<String, &'a DescriptorProto>,
) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages);
    }
    messages.insert(name, message);
}
