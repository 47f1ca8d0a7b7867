//! Commands for another shell, and the files that make them short.

use std::path::Path;

use super::stage::Stage;
use crate::cli::say;

/// Who may be tried out, and with what: one thing that works and one that does not.
const TRIALS: [(&str, &str); 6] = [
    ("acme", "get --prefix /tenants/acme/"),
    ("acme", "get /tenants/globex/plan"),
    ("globex", "put /tenants/globex/plan other"),
    ("globex", "get --prefix /tenants/"),
    ("apiserver", "get --prefix /registry/ --keys-only"),
    ("apiserver", "get /tenants/acme/colour"),
];

/// Writes a file per client and prints what to do with it.
pub(super) fn invite(stage: &Stage) -> Result<(), String> {
    say("");
    say("Try it from another shell; of each pair the first is allowed and the second is not:");
    let etcdctl = quoted(&stage.programs.etcdctl);
    for (who, arguments) in TRIALS {
        let path = stage.folder.join(format!("{who}.env"));
        std::fs::write(&path, settings(stage, who))
            .map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
        say(&format!("  (. {}; {etcdctl} {arguments})", quoted(&path)));
    }
    say("");
    say("And watch what is recorded and counted:");
    say(&format!("  tail -f {}/*.jsonl", quoted(&stage.audit())));
    say(&format!("  curl http://{}/metrics", stage.addresses.admin));
    say("");
    say("Ctrl-C ends it.");
    Ok(())
}

/// What makes etcdctl a client of ringfence.
fn settings(stage: &Stage, who: &str) -> String {
    format!(
        "# Makes etcdctl {who}'s. Made by `ringfence demo --stay`; for a shell to read.\n\
         export ETCDCTL_API=3\n\
         export ETCDCTL_ENDPOINTS=https://{}\n\
         export ETCDCTL_CACERT={}\n\
         export ETCDCTL_CERT={}\n\
         export ETCDCTL_KEY={}\n",
        stage.addresses.ringfence,
        quoted(&stage.pki("kubernetes-ca.crt")),
        quoted(&stage.pki(&format!("{who}.crt"))),
        quoted(&stage.pki(&format!("{who}.key"))),
    )
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@%".contains(&byte);
    if path.bytes().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_path_back() {
        for path in ["/tmp/a", "/tmp/a b", "/tmp/it's $HOME", "/tmp/`x`"] {
            let output = std::process::Command::new("/bin/sh")
                .args(["-c", &format!("printf %s {}", quoted(Path::new(path)))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
    }
}
