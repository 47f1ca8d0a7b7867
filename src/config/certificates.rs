//! Which files of certificates and of revocation lists a config names, and for what. None of them is opened: one that
//! is broken must not hide the others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::Raw;
use super::resolve::Loader;
use super::users::beside;
use crate::document::{Located, Location, Problem, Problems};
use crate::policy::PolicySource;

/// A file that the config names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    /// The setting, with the name of what it belongs to.
    pub setting: String,
    /// Where it stands.
    pub location: Location,
    /// The file, as it is opened.
    pub path: PathBuf,
}

/// Every file of certificates or revocation lists that a config and its policies name, and every mistake on the way there.
#[must_use]
pub fn certificate_files(path: &Path) -> (Vec<CertificateFile>, Vec<Problem>) {
    let problems = Problems::default();
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    // Nothing is judged here, so no time is needed.
    let loader = Loader::new(folder, &problems, Duration::ZERO);
    let files = loader.read(path, |raw| {
        let mut source = PolicySource::default();
        loader.read_policies(raw, &mut source);
        let mut files = loader.lists_of_config(raw);
        files.extend(loader.certificates_of_config(raw));
        files.extend(certificates_of_policy(&source));
        files
    });
    (files.unwrap_or_default(), problems.into_sorted())
}

/// Those that policies name.
pub(super) fn certificates_of_policy(
    source: &PolicySource,
) -> impl Iterator<Item = CertificateFile> {
    source.named_upstream_certificates().map(|(identity, certificate)| CertificateFile {
        setting: format!("identity `{identity}` upstream.certificate"),
        location: certificate.location.clone(),
        path: beside(&certificate.location, &certificate.value),
    })
}

impl Loader<'_> {
    /// The files of revocation lists.
    fn lists_of_config(&self, raw: &Raw) -> Vec<CertificateFile> {
        let mut files = Vec::new();
        for ca in &raw.client.authorities {
            for (pattern, path) in self.list_files(&ca.lists) {
                let setting = format!("client.ca `{}` crl_files", ca.shown_name());
                files.push(CertificateFile { setting, location: pattern.location.clone(), path });
            }
        }
        files
    }

    /// Those that the config names itself.
    pub(super) fn certificates_of_config(&self, raw: &Raw) -> Vec<CertificateFile> {
        let mut files = Vec::new();
        let mut add = |setting: String, text: Option<&Located<String>>| {
            files.extend(text.map(|text| CertificateFile {
                setting,
                location: text.location.clone(),
                path: self.folder.join(&text.value),
            }));
        };
        add("client.certificate".to_owned(), raw.client.certificate.as_ref());
        for ca in &raw.client.authorities {
            add(format!("client.ca `{}`", ca.shown_name()), ca.roots.as_ref());
        }
        add("upstream.ca".to_owned(), raw.upstream.ca.as_ref());
        add("upstream.certificate".to_owned(), raw.upstream.certificate.as_ref());
        for sink in &raw.audit.sinks {
            let name = sink.name.as_ref().map_or("", |name| name.value.as_str());
            add(format!("audit.sink `{name}` ca"), sink.ca.as_ref());
            add(format!("audit.sink `{name}` certificate"), sink.certificate.as_ref());
        }
        files
    }
}
