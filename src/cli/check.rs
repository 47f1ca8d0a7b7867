//! `ringfence check`

use std::path::Path;
use std::process::ExitCode;

use super::{complain_all, say};
use crate::{clock, config};

/// Exit code 0 when `serve` would start with this config.
pub(super) fn run(path: &Path) -> ExitCode {
    match config::load(path, clock::since_epoch()) {
        Ok(config) => {
            complain_all(&config.warnings);
            let (identities, rules) = config.policy.size();
            let authorities = config.authorities.len();
            let path = path.display();
            let mut said =
                format!("{path}: ok: {authorities} CAs, {identities} identities, {rules} rules");
            if !config.revocation_files.is_empty() {
                let (lists, denied) =
                    (config.revocation.lists().count(), config.revocation.denied().len());
                said.push_str(&format!(", {lists} revocation lists, {denied} denied"));
            }
            say(&said);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            complain_all(&problems);
            ExitCode::FAILURE
        }
    }
}
