//! What machine a figure was taken on. Names no host.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

pub fn describe(cores: usize) -> Value {
    json!({ "cores": cores, "processor": processor(), "kernel": kernel() })
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn kernel() -> String {
    let version = Command::new("uname").args(["-s", "-r", "-m"]).output();
    version.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
