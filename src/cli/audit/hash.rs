//! `ringfence audit hash`

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::COULD_NOT;
use super::question::read_hash_key;
use crate::cli::{complain, say};

/// The most bytes of a value: more than etcd takes.
const VALUE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["key", "value"])))]
pub(super) struct Arguments {
    /// The file of `audit.hash_key`
    hash_key: PathBuf,
    /// Hash this key, as `key_hmac` and `range_end_hmac` of a record show it
    #[arg(long)]
    key: Option<String>,
    /// Hash what is in this file, as `value_hmac` of a record shows it; - reads from standard input
    #[arg(long, value_name = "FILE")]
    value: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let hashed = read_hash_key(&arguments.hash_key).and_then(|hash| {
        Ok(match (&arguments.key, &arguments.value) {
            (Some(key), _) => hash.of_key(key.as_bytes()),
            (None, Some(value)) => hash.of_value(&read_value(value)?),
            (None, None) => return Err("error: neither --key nor --value was given".to_owned()),
        })
    });
    match hashed {
        Ok(hash) => {
            say(&hash.to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&error);
            ExitCode::from(COULD_NOT)
        }
    }
}

fn read_value(path: &Path) -> Result<Vec<u8>, String> {
    let mut value = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(VALUE_BYTES_MAX + 1).read_to_end(&mut value)
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(VALUE_BYTES_MAX + 1).read_to_end(&mut value))
    };
    let name = path.display();
    let read = read.map_err(|error| format!("error: cannot read `{name}`: {error}"))?;
    if read as u64 > VALUE_BYTES_MAX {
        return Err(format!("error: `{name}` is larger than {VALUE_BYTES_MAX} bytes"));
    }
    Ok(value)
}
