//! `ringfence serve`

use std::path::Path;
use std::process::ExitCode;

use super::{complain, complain_all};
use crate::{clock, config, server};

/// Exit code 0 when every call had ended, 1 otherwise.
pub(super) fn run(path: &Path, take_over: bool) -> ExitCode {
    let loaded = config::load_again(path, clock::since_epoch(), None);
    let config = match loaded.config {
        Ok(config) => config,
        Err(problems) => {
            complain_all(&problems);
            return ExitCode::FAILURE;
        }
    };
    complain_all(&config.warnings);
    match server::run(path, loaded.named, config, take_over) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
