//! `ringfence cert revoke` and `ringfence cert crl`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use rcgen::RevocationReason;

use crate::cli::{complain, say};
use crate::clock;
use crate::evidence::record::printable;
use crate::pki::Fault;
use crate::pki::lifetime::rfc3339;
use crate::pki::revocation::{Issued, Which, reissue, revoke};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["name", "serial"])))]
pub(super) struct Arguments {
    /// The folder with NAME.crt and the certificate and key of its authority
    folder: PathBuf,
    /// The certificate that is in NAME.crt now
    name: Option<String>,
    /// A certificate by its serial number, an old one for example
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Which authority has signed it, when that is not clear
    #[arg(long, value_name = "NAME")]
    authority: Option<String>,
    /// No certificate in the folder has the serial number: revoke it all the same. It cannot be taken back
    #[arg(long, conflicts_with = "name")]
    unknown: bool,
    /// Why, for those who read the list
    #[arg(long, value_enum)]
    reason: Option<Reason>,
    #[command(flatten)]
    next: Next,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArguments {
    /// The folder with the certificates and keys of authorities
    folder: PathBuf,
    /// Only the list of this authority
    #[arg(long, value_name = "NAME")]
    authority: Option<String>,
    #[command(flatten)]
    next: Next,
}

#[derive(Debug, clap::Args)]
struct Next {
    /// The list holds for so many days, then a fresh one is due
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Those of RFC 5280 that end a client's certificate for good.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reason {
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl Reason {
    const fn code(self) -> RevocationReason {
        match self {
            Self::KeyCompromise => RevocationReason::KeyCompromise,
            Self::AffiliationChanged => RevocationReason::AffiliationChanged,
            Self::Superseded => RevocationReason::Superseded,
            Self::CessationOfOperation => RevocationReason::CessationOfOperation,
            Self::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
        }
    }
}

/// Exit code 0 when the certificate is on the list.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let authority = arguments.authority.as_deref();
    let which = match (&arguments.name, &arguments.serial) {
        (Some(name), _) => Which::Name(name, authority),
        (None, serial) => Which::Serial {
            text: serial.as_deref().unwrap_or_default(),
            authority,
            may_be_unknown: arguments.unknown,
        },
    };
    let reason = arguments.reason.map(Reason::code);
    let now = clock::since_epoch();
    let revocation = match revoke(&arguments.folder, &which, reason, arguments.next.days, now) {
        Ok(revocation) => revocation,
        Err(fault) => {
            complain_of(&fault);
            return ExitCode::FAILURE;
        }
    };
    match &revocation.issued {
        Some(issued) => {
            say(&format!("serial {} is revoked", revocation.serial));
            say_issued(issued);
        }
        None => say(&format!(
            "serial {} was revoked before: the list stays as it is",
            revocation.serial
        )),
    }
    if !revocation.is_known {
        complain("note: no certificate of this authority in the folder has this serial number");
    }
    ExitCode::SUCCESS
}

/// Exit code 0 when every list was signed, apart from those of authorities that have neither a key nor a list.
pub(super) fn run_list(arguments: &ListArguments) -> ExitCode {
    let authority = arguments.authority.as_deref();
    let now = clock::since_epoch();
    let reissued = reissue(&arguments.folder, authority, arguments.next.days, now);
    reissued.issued.iter().for_each(say_issued);
    let mut is_all = reissued.faults.is_empty();
    for (name, has_list) in &reissued.without_key {
        let list = if *has_list {
            is_all = false;
            "its list stays as it is, and will lapse"
        } else {
            "no list is signed"
        };
        complain(&printable(&format!("note: `{name}` has no key here: {list}")));
    }
    reissued.faults.iter().for_each(complain_of);
    if is_all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The names in a folder may be anybody's.
fn complain_of(fault: &Fault) {
    complain(&format!("error: {}", printable(&fault.what)));
    if !fault.hint.is_empty() {
        complain(&format!("  hint: {}", printable(&fault.hint)));
    }
}

fn say_issued(issued: &Issued) {
    say(&printable(&format!(
        "{}: list {} of `{}`, {} revoked, next update by {}",
        issued.file.display(),
        issued.number,
        issued.authority,
        issued.revoked,
        rfc3339(issued.next_update_seconds)
    )));
    if issued.is_first {
        let note = "this one begins with number 1";
        complain(&printable(&format!("note: there was no list of `{}`: {note}", issued.authority)));
    }
}
