//! The recipe of a PKI: which authorities, which certificates. `certs/demo.toml` is one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::document::{Document, Problem, Problems, TableReader};

/// What to make.
#[derive(Debug, Default)]
pub struct Recipe {
    /// Authorities.
    pub authorities: Vec<AuthorityRecipe>,
    /// Certificates that they sign.
    pub certificates: Vec<CertificateRecipe>,
}

/// One authority.
#[derive(Debug)]
pub struct AuthorityRecipe {
    /// The name of its files.
    pub name: String,
    /// Its CN.
    pub common_name: String,
}

/// One certificate.
#[derive(Debug)]
pub struct CertificateRecipe {
    /// The name of its files.
    pub name: String,
    /// Who signs it.
    pub authority: String,
    /// CN.
    pub common_name: Option<String>,
    /// O, at most one.
    pub organizations: Vec<String>,
    /// OU, at most one.
    pub organizational_units: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// For TLS servers.
    pub server: bool,
    /// For TLS clients.
    pub client: bool,
    /// Valid from that many days after now; negative is before.
    pub valid_from_days: i64,
    /// Valid for that many days.
    pub valid_days: i64,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(file: &str, text: &str) -> Result<Self, Vec<Problem>> {
        let problems = Problems::default();
        let document = Document::new(file, text);
        let Some(table) = document.parse(&problems) else { return Err(problems.into_sorted()) };
        let root = document.root(&table, &problems);
        let mut names = BTreeSet::new();
        let authorities = root.tables("authority").into_iter();
        let authorities: Vec<AuthorityRecipe> =
            authorities.filter_map(|table| read_authority(table, &mut names)).collect();
        let certificates = root.tables("certificate").into_iter();
        let certificates: Vec<CertificateRecipe> = certificates
            .filter_map(|table| read_certificate(table, &authorities, &mut names))
            .collect();
        if !root.has("authority") || root.is_empty_list("authority") {
            let hint = "[[authority]] and [[certificate]] say what to make";
            problems.error(root.location(), "the recipe has no `[[authority]]`", hint);
        }
        root.finish();
        if problems.has_errors() {
            Err(problems.into_sorted())
        } else {
            Ok(Self { authorities, certificates })
        }
    }
}

/// A name becomes a file name, so authorities and certificates share them.
fn file_name(table: &TableReader<'_>, names: &mut BTreeSet<String>) -> Option<String> {
    let name = table.required_text("name", "the name of the files NAME.crt and NAME.key")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.value.bytes().all(plain) {
        if !names.insert(name.value.clone()) {
            let what = format!("the name `{}` is there twice", name.value);
            table.problems().error(&name.location, what, "each name is the name of files");
        }
        return Some(name.value);
    }
    let what = format!("`{}` is no file name", name.value);
    table.problems().error(&name.location, what, "A-Z a-z 0-9 - _");
    None
}

fn read_authority(table: TableReader<'_>, names: &mut BTreeSet<String>) -> Option<AuthorityRecipe> {
    let name = file_name(&table, names);
    let common_name = table.required_text("common_name", "the CA's CN");
    table.finish();
    Some(AuthorityRecipe { name: name?, common_name: common_name?.value })
}

fn read_certificate(
    table: TableReader<'_>,
    authorities: &[AuthorityRecipe],
    names: &mut BTreeSet<String>,
) -> Option<CertificateRecipe> {
    let name = file_name(&table, names);
    let authority = table.required_text("authority", "the name of an [[authority]]");
    if let Some(authority) = &authority
        && !authorities.iter().any(|known| known.name == authority.value)
    {
        let what = format!("`{}` is no [[authority]] of this recipe", authority.value);
        table.problems().error(&authority.location, what, "");
    }
    let texts = |key| table.texts(key).into_iter().map(|text| text.value).collect::<Vec<String>>();
    let mut ips = Vec::new();
    for text in table.texts("ip") {
        match text.value.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => {
                let what = format!("`{}` is no IP address", text.value);
                table.problems().error(&text.location, what, "");
            }
        }
    }
    let uses = table.required_texts("use", "use = [\"server\"], [\"client\"] or both");
    for text in &uses {
        if !["server", "client"].contains(&text.value.as_str()) {
            let what = format!("`{}` is no use", text.value);
            table.problems().error(&text.location, what, "`server` or `client`");
        }
    }
    for key in ["organization", "organizational_unit"] {
        if let [_, second, ..] = table.texts(key).as_slice() {
            let what = format!("`{key}` has several values, of which only one could be written");
            table.problems().error(&second.location, what, "one value, or a SAN for each");
        }
    }
    let used_as = |name: &str| uses.iter().any(|text| text.value == name);
    let days =
        |key, default| i64::try_from(table.number(key, 0..=36_500, default)).unwrap_or_default();
    let expired_days_ago = days("expired_days_ago", 0);
    let valid_days = days("valid_days", 90);
    let starts_in_days = days("starts_in_days", 0);
    if expired_days_ago > 0 && starts_in_days > 0 {
        let what = "`expired_days_ago` and `starts_in_days` together";
        table.problems().error(table.location(), what, "a certificate ends after it begins");
    }
    let recipe = CertificateRecipe {
        name: name.unwrap_or_default(),
        authority: authority.map(|authority| authority.value).unwrap_or_default(),
        common_name: table.text("common_name").map(|text| text.value),
        organizations: texts("organization"),
        organizational_units: texts("organizational_unit"),
        dns: texts("dns"),
        uris: texts("uri"),
        ips,
        server: used_as("server"),
        client: used_as("client"),
        // A clock that is a little behind must not refuse a new certificate.
        valid_from_days: match (expired_days_ago, starts_in_days) {
            (0, 0) => -1,
            (0, starts) => starts,
            (expired, _) => -valid_days - expired,
        },
        valid_days,
    };
    table.finish();
    Some(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: &str = "[[authority]]\nname = \"ca\"\ncommon_name = \"ca\"\n";

    fn check(text: &str, expected: &[&str]) {
        let problems = Recipe::read("recipe", text).err().unwrap_or_default();
        let found: Vec<String> = problems.into_iter().map(|problem| problem.what).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_recipe_that_would_make_nothing_or_a_file_twice_is_refused() {
        let certificate = |name: &str| {
            format!("[[certificate]]\nname = \"{name}\"\nauthority = \"ca\"\nuse = [\"client\"]\n")
        };
        let (one, other) = (certificate("one"), certificate("other"));
        check(&[AUTHORITY, &one, &other].concat(), &[]);
        check("", &["the recipe has no `[[authority]]`"]);
        check("authority = []", &["the recipe has no `[[authority]]`"]);
        check(&[AUTHORITY, AUTHORITY].concat(), &["the name `ca` is there twice"]);
        check(&[AUTHORITY, &one, &one].concat(), &["the name `one` is there twice"]);
        check(&[AUTHORITY, &certificate("ca")].concat(), &["the name `ca` is there twice"]);
        // rcgen writes the last of them, and says nothing.
        let several = "`organization` has several values, of which only one could be written";
        check(&[AUTHORITY, &one, "organization = [\"a\", \"b\"]\n"].concat(), &[several]);
        check(&[AUTHORITY, &one, "organization = [\"a\"]\n"].concat(), &[]);
    }
}
