//! `ringfence cert make`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{complain, complain_all, say};
use crate::pki::Recipe;
use crate::{clock, config, pki};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The recipe
    recipe: PathBuf,
    /// The folder for NAME.crt and NAME.key
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match make(&arguments.recipe, &arguments.folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(()) => ExitCode::FAILURE,
    }
}

fn make(recipe: &Path, folder: &Path) -> Result<(), ()> {
    let file = recipe.display().to_string();
    let text = config::read_text(recipe)
        .map_err(|error| complain(&format!("error: {}: {}", error.location, error.what)))?;
    let recipe = Recipe::read(&file, &text).map_err(|problems| complain_all(&problems))?;
    let files = pki::make(&recipe, folder, clock::since_epoch())
        .map_err(|error| complain(&format!("error: {error}")))?;
    for file in files {
        say(&file.display().to_string());
    }
    Ok(())
}
