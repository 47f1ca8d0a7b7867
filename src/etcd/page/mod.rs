//! Every page that etcd shows over plain HTTP and ringfence knows, and the only source of HTTP
//! paths: like the catalog for RPCs. A query is read against a fixed set of words and written anew.

use super::touch::Touch;
use super::verb::StoreVerb;

/// What a page may be asked beside its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The names that `exclude=` may have.
    pub exclude: &'static [&'static str],
    /// Whether `serializable=true` or `serializable=false` may be there.
    pub serializable: bool,
    /// Whether a bare `verbose` may be there.
    pub verbose: bool,
}

impl Parameters {
    const NONE: Self = Self { exclude: &[], serializable: false, verbose: false };
    /// Alarms; `ALARM` excludes nothing in etcd, but is written into probes.
    const HEALTH: Self =
        Self { exclude: &["ALARM", "NOSPACE", "CORRUPT"], serializable: true, verbose: false };
    /// Both sets of checks take each other's names: etcd ignores those that a set does not have.
    const CHECKS: Self = Self {
        exclude: &["data_corruption", "serializable_read", "linearizable_read", "non_learner"],
        serializable: false,
        verbose: true,
    };
    const CHECK: Self = Self { exclude: &[], serializable: false, verbose: true };
}

macro_rules! pages {
    ($($page:ident $path:literal $verb:ident $parameters:ident;)+) => {
        /// One variant per page.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Page {
            $(#[doc = concat!("`", $path, "`")] $page,)+
        }

        impl Page {
            /// Every page, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$page,)+];

            /// The page whose path is exactly `path`: no decoding, no normalising, no closing
            /// slash (attack cases 106 and 108).
            #[must_use]
            pub fn from_path(path: &str) -> Option<Self> {
                match path {
                    $($path => Some(Self::$page),)+
                    _ => None,
                }
            }

            /// Its path.
            #[must_use]
            pub const fn path(self) -> &'static str {
                match self {
                    $(Self::$page => $path,)+
                }
            }

            /// What a caller must hold.
            #[must_use]
            pub const fn verb(self) -> StoreVerb {
                match self {
                    $(Self::$page => StoreVerb::$verb,)+
                }
            }

            /// What it may be asked.
            #[must_use]
            pub const fn parameters(self) -> Parameters {
                match self {
                    $(Self::$page => Parameters::$parameters,)+
                }
            }

            /// The position in [`Page::ALL`], for tables with a row per page.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

// `/livez` and `/readyz` are there from etcd 3.6 on (and in late patches of 3.4 and 3.5); an older
// one answers 404 itself.
pages! {
    Health                 "/health"                   Health  HEALTH;
    Livez                  "/livez"                    Health  CHECKS;
    LivezSerializableRead  "/livez/serializable_read"  Health  CHECK;
    Readyz                 "/readyz"                   Health  CHECKS;
    ReadyzDataCorruption   "/readyz/data_corruption"   Health  CHECK;
    ReadyzSerializableRead "/readyz/serializable_read" Health  CHECK;
    ReadyzLinearizableRead "/readyz/linearizable_read" Health  CHECK;
    ReadyzNonLearner       "/readyz/non_learner"       Health  CHECK;
    Version                "/version"                  Version NONE;
    Metrics                "/metrics"                  Metrics NONE;
}

/// A page with its query, both from fixed sets: nothing in here is a client's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    page: Page,
    query: Query,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Query {
    /// A bit for each name of [`Parameters::exclude`].
    exclude: u8,
    serializable: Option<bool>,
    verbose: bool,
}

/// A query with a part that the page does not take, or takes once and got twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the query of this page may hold {0}")]
pub struct InvalidQuery(&'static str);

impl PageRequest {
    /// Reads a query as it stands behind the `?`; `None` is a target without one.
    ///
    /// # Errors
    /// When a part of it is not, byte for byte, one that the page takes.
    pub fn read(page: Page, query: Option<&str>) -> Result<Self, InvalidQuery> {
        let parameters = page.parameters();
        let mut read = Query::default();
        for part in query.iter().flat_map(|query| query.split('&')) {
            read.add(parameters, part).ok_or_else(|| InvalidQuery::of(parameters))?;
        }
        Ok(Self { page, query: read })
    }

    /// Which page.
    #[must_use]
    pub const fn page(&self) -> Page {
        self.page
    }

    /// The one thing that reading it does.
    #[must_use]
    pub const fn touch(&self) -> Touch {
        Touch::Store(self.page.verb())
    }

    /// The target to ask etcd for, written from the table.
    #[must_use]
    pub fn target(&self) -> String {
        let mut target = self.page.path().to_owned();
        let mut separator = '?';
        let mut add = |parts: &[&str]| {
            target.push(std::mem::replace(&mut separator, '&'));
            parts.iter().for_each(|part| target.push_str(part));
        };
        for (position, name) in self.page.parameters().exclude.iter().enumerate() {
            if self.query.exclude & (1 << position) != 0 {
                add(&["exclude=", name]);
            }
        }
        match self.query.serializable {
            Some(true) => add(&["serializable=true"]),
            Some(false) => add(&["serializable=false"]),
            None => {}
        }
        if self.query.verbose {
            add(&["verbose"]);
        }
        target
    }
}

impl Query {
    /// Adds one part; `None` when it may not be there, or is there already.
    fn add(&mut self, parameters: Parameters, part: &str) -> Option<()> {
        if let Some(name) = part.strip_prefix("exclude=") {
            let bit = 1 << parameters.exclude.iter().position(|known| *known == name)?;
            let new = self.exclude & bit == 0;
            self.exclude |= bit;
            return new.then_some(());
        }
        match part {
            "serializable=true" | "serializable=false" if parameters.serializable => {
                self.serializable.replace(part == "serializable=true").is_none().then_some(())
            }
            "verbose" if parameters.verbose => {
                (!std::mem::replace(&mut self.verbose, true)).then_some(())
            }
            _ => None,
        }
    }
}

impl InvalidQuery {
    const fn of(parameters: Parameters) -> Self {
        Self(match (parameters.exclude.is_empty(), parameters.serializable, parameters.verbose) {
            (false, true, _) => {
                "exclude=ALARM, exclude=NOSPACE, exclude=CORRUPT, and serializable=true or =false, each once"
            }
            (false, false, _) => "exclude=CHECK and verbose, each once",
            (true, _, true) => "verbose, once",
            (true, _, false) => "nothing",
        })
    }
}

#[cfg(test)]
mod tests;
