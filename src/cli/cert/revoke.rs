//! `ringfence cert revoke` and `ringfence cert crl`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use rcgen::RevocationReason;

use crate::cli::{complain, say};
use crate::clock;
use crate::pki::lifetime::rfc3339;
use crate::pki::revocation::{Issued, Which, reissue, revoke};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder with NAME.crt and the certificate and key of its authority
    folder: PathBuf,
    /// The certificate that is in NAME.crt now
    #[arg(required_unless_present = "serial", conflicts_with = "serial")]
    name: Option<String>,
    /// A certificate by its serial number, an old one for example
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Whose serial number it is, when that is not clear
    #[arg(long, value_name = "NAME", requires = "serial")]
    authority: Option<String>,
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
    let which = match (&arguments.name, &arguments.serial) {
        (Some(name), _) => Which::Name(name),
        (None, serial) => {
            Which::Serial(serial.as_deref().unwrap_or_default(), arguments.authority.as_deref())
        }
    };
    let reason = arguments.reason.map(Reason::code);
    let now = clock::since_epoch();
    let revocation = match revoke(&arguments.folder, &which, reason, arguments.next.days, now) {
        Ok(revocation) => revocation,
        Err(fault) => {
            complain(&format!("error: {fault}"));
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
        complain("note: no certificate in the folder has this serial number: is it right?");
    }
    ExitCode::SUCCESS
}

/// Exit code 0 when every list was signed.
pub(super) fn run_list(arguments: &ListArguments) -> ExitCode {
    let authority = arguments.authority.as_deref();
    let now = clock::since_epoch();
    let (issued, faults) = reissue(&arguments.folder, authority, arguments.next.days, now);
    issued.iter().for_each(say_issued);
    for fault in &faults {
        complain(&format!("error: {fault}"));
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say_issued(issued: &Issued) {
    say(&format!(
        "{}: list {} of `{}`, {} revoked, next update by {}",
        issued.file.display(),
        issued.number,
        issued.authority,
        issued.revoked,
        rfc3339(issued.next_update_seconds)
    ));
}
