//! `[upgrade]`: the unix socket on which a newer ringfence takes the place of the one that runs.

use std::path::PathBuf;

use super::raw::Raw;
use super::resolve::Loader;
use crate::document::{Located, TableReader};

/// A unix socket's path has at most 107 bytes, and the socket is made beside it first.
const PATH_BYTES_MAX: usize = 100;
/// As many sockets are handed over at the most, the one of `admin.listen` among them.
const LISTEN_MAX: usize = 63;

pub(super) fn read(table: TableReader<'_>) -> Option<Located<String>> {
    let socket = table.required_text("socket", "for example socket = \"/run/ringfence/upgrade\"");
    table.finish();
    socket
}

impl Loader<'_> {
    /// Whether something else stands there is seen when it is made.
    pub(super) fn upgrade_socket(&self, raw: &Raw) -> Option<PathBuf> {
        let text = raw.upgrade_socket.as_ref()?;
        let path = self.folder.join(&text.value);
        let bytes = path.as_os_str().len();
        if text.value.ends_with('/') || text.value.contains('\0') || path.file_name().is_none() {
            let what = format!("`upgrade.socket`: `{}` names no file", text.value.escape_debug());
            self.problems.error(&text.location, what, "a path of its own");
        } else if bytes > PATH_BYTES_MAX {
            let what = format!(
                "`upgrade.socket`: `{}` has {bytes} bytes, longer than the system takes",
                path.display()
            );
            let hint =
                format!("a path of {PATH_BYTES_MAX} bytes at most, such as /run/ringfence/upgrade");
            self.problems.error(&text.location, what, hint);
        }
        if raw.client.listen.len() > LISTEN_MAX {
            let what = format!(
                "`client.listen` has {} addresses, and `upgrade.socket` is set",
                raw.client.listen.len()
            );
            let hint = format!("at most {LISTEN_MAX} can be handed over");
            self.problems.error(&text.location, what, hint);
        }
        Some(path)
    }
}
