//! What the config says of revocation, as it is written: files of lists beside each CA, and deny lists.

use super::raw::RawAuthority;
use crate::document::{Located, TableReader};
use crate::tls::revocation::Mode;

/// The revocation lists of a CA.
#[derive(Debug)]
pub(super) struct RawLists {
    pub(super) files: Vec<Located<String>>,
    pub(super) mode: Mode,
}

/// `crl_files` and `crl` of a `[[client.ca]]`.
pub(super) fn read_lists(ca: &TableReader<'_>) -> RawLists {
    let hint = "for example crl_files = [\"crl.d/*.crl\"]";
    let has_files = ca.has("crl_files");
    let files =
        if has_files { ca.required_texts("crl_files", hint) } else { ca.texts("crl_files") };
    let mode = ca.text("crl");
    let location = |mode: &Located<String>| mode.location.clone();
    if let Some(location) = mode.as_ref().map(location).filter(|_| !has_files) {
        let what = "`client.ca.crl` is there, and `client.ca.crl_files` is not";
        ca.problems().error(&location, what, "without a list nothing is revoked: name its files");
    }
    let mode = match mode.as_ref().map(|mode| (mode.value.as_str(), &mode.location)) {
        None | Some(("hard", _)) => Mode::Hard,
        Some(("soft", _)) => Mode::Soft,
        Some((other, location)) => {
            let what = format!("`client.ca.crl` is `{other}`, neither `hard` nor `soft`");
            let hint = "crl = \"hard\" refuses a certificate of which no list that holds tells";
            ca.problems().error(location, what, hint);
            Mode::Hard
        }
    };
    RawLists { files, mode }
}

/// `[revocation]`
pub(super) fn read_deny_files(table: TableReader<'_>) -> Vec<Located<String>> {
    let hint = "for example deny_files = [\"deny.d/*.txt\"]";
    let files = table.required_texts("deny_files", hint);
    table.finish();
    files
}

impl RawAuthority {
    /// The name, when there is one.
    pub(super) fn shown_name(&self) -> &str {
        self.name.as_ref().map_or("", |name| name.value.as_str())
    }
}
