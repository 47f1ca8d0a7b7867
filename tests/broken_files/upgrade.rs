//! `[upgrade]`.

use super::check_config;

#[test]
fn every_mistake_of_the_upgrade_socket_is_told() {
    let upgrade = |lines: &str| format!("[upgrade]\n{lines}\n[audit]");
    let long = format!("socket = \"run/{}\"", "x".repeat(97));
    for (name, lines) in [
        ("config_upgrade_without_socket", ""),
        ("config_upgrade_empty", "socket = \"\""),
        ("config_upgrade_folder", "socket = \"run/\""),
        ("config_upgrade_too_long", long.as_str()),
        ("config_upgrade_unknown_key", "soket = \"run/upgrade\""),
    ] {
        check_config(name, "[audit]", &upgrade(lines));
    }
    let many: Vec<String> =
        (0..64).map(|port| format!("\"127.0.0.1:{}\"", 20_000 + port)).collect();
    let listen = format!("upgrade.socket = \"upgrade\"\n[client]\nlisten = [{}]", many.join(", "));
    check_config("config_upgrade_many", "[client]\nlisten = [\"127.0.0.1:2379\"]", &listen);
}
