//! A TOML table that is read key by key; what nobody asked for is reported as unknown.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Location, Problems};

/// The most entries that a list or table may hold: more is an error, and what would be read of it is
/// bounded. Nothing is cut silently: a rule that goes unread may be one that denies.
const LIST_MAX: usize = 100_000;

/// What a key is expected to be.
const TEXT: &str = "a text";
const TEXTS: &str = "a list of texts";
const TABLES: &str = "a list of tables";
const NUMBER: &str = "a whole number";
const FLAG: &str = "true or false";

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line.
    pub location: Location,
}

/// One file's text.
#[derive(Debug)]
pub struct Document<'a> {
    file: Arc<str>,
    text: &'a str,
    /// The offset at which each line begins.
    line_starts: Vec<usize>,
}

impl<'a> Document<'a> {
    /// Takes the text of the file of that name.
    #[must_use]
    pub fn new(file: &str, text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(breaks.map(|(offset, _)| offset + 1)).collect();
        Self { file: file.into(), text, line_starts }
    }

    /// The file as a whole.
    #[must_use]
    pub fn location(&self) -> Location {
        Location { file: Arc::clone(&self.file), line: 0 }
    }

    fn location_of(&self, span: &Range<usize>) -> Location {
        let line = self.line_starts.partition_point(|start| *start <= span.start);
        Location { file: Arc::clone(&self.file), line }
    }

    /// Parses the text. What is read after a syntax error may be something else than what was
    /// meant, so then only the syntax is reported.
    #[must_use]
    pub fn parse(&self, problems: &Problems) -> Option<Spanned<DeTable<'a>>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let location =
                error.span().map_or_else(|| self.location(), |span| self.location_of(&span));
            problems.error(&location, format!("not TOML: {}", error.message()), "");
        }
        errors.is_empty().then_some(table)
    }

    /// A reader of the whole document.
    #[must_use]
    pub fn root<'d>(
        &'d self,
        table: &'d Spanned<DeTable<'a>>,
        problems: &'d Problems,
    ) -> TableReader<'d> {
        TableReader {
            document: self,
            table: table.get_ref(),
            location: self.location(),
            name: String::new(),
            taken: RefCell::default(),
            problems,
        }
    }
}

fn written(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        // In any base.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string(), |number| number.to_string()),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(values) => {
            let values: Vec<String> = values.iter().map(|value| written(value.get_ref())).collect();
            format!("[{}]", values.join(", "))
        }
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
                format!(
                    "{:?} = {}",
                    Spanned::<std::borrow::Cow<'_, str>>::get_ref(key),
                    written(value.get_ref())
                )
            };
            let entries: Vec<String> = table.iter().map(entry).collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// A table whose keys are asked for one by one.
#[derive(Debug)]
pub struct TableReader<'d> {
    document: &'d Document<'d>,
    table: &'d DeTable<'d>,
    location: Location,
    name: String,
    taken: RefCell<Vec<&'static str>>,
    problems: &'d Problems,
}

impl<'d> TableReader<'d> {
    /// Where the table begins.
    #[must_use]
    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// The collector of this run.
    #[must_use]
    pub const fn problems(&self) -> &'d Problems {
        self.problems
    }

    /// The name of a key with its table, as a user would write it.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Whether the key is there at all.
    #[must_use]
    pub fn has(&self, key: &'static str) -> bool {
        self.table.contains_key(key)
    }

    /// The keys that are there, with the value of each as it would be written on one line: what is written otherwise but
    /// means the same is the same text. They do not count as read.
    #[must_use]
    pub fn written(&self) -> BTreeMap<String, (String, Location)> {
        let written = self.table.iter().map(|(key, value)| {
            let location = self.document.location_of(&key.span());
            (key.get_ref().to_string(), (written(value.get_ref()), location))
        });
        written.collect()
    }

    fn value(&self, key: &'static str) -> Option<(&'d DeValue<'d>, Location)> {
        self.taken.borrow_mut().push(key);
        let value = self.table.get(key)?;
        Some((value.get_ref(), self.document.location_of(&value.span())))
    }

    fn wrong_type(&self, key: &str, location: &Location, found: &DeValue<'_>, expected: &str) {
        let what = format!("`{}` is {}, not {expected}", self.path(key), type_in_words(found));
        let hint = match (expected, found) {
            (TEXTS, DeValue::String(text)) => format!("put it into brackets: {key} = [{text:?}]"),
            (TABLES, DeValue::Table(_)) => format!("put it into brackets: [[{}]]", self.path(key)),
            (TEXT, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)) => {
                "put it into quotes".to_owned()
            }
            (NUMBER | FLAG, DeValue::String(_)) => "leave the quotes out".to_owned(),
            _ => String::new(),
        };
        self.problems.error(location, what, hint);
    }

    fn missing(&self, key: &str, hint: &str) {
        let what = format!("`{}` is missing", self.path(key));
        self.problems.error(&self.location, what, hint);
    }

    /// A text, if the key is there.
    #[must_use]
    pub fn text(&self, key: &'static str) -> Option<Located<String>> {
        let (value, location) = self.value(key)?;
        match value.as_str() {
            Some(text) => Some(Located { value: text.to_owned(), location }),
            None => {
                self.wrong_type(key, &location, value, TEXT);
                None
            }
        }
    }

    /// A text that must be there and must not be empty; the hint says what belongs there.
    #[must_use]
    pub fn required_text(&self, key: &'static str, hint: &str) -> Option<Located<String>> {
        if !self.has(key) {
            self.taken.borrow_mut().push(key);
            self.missing(key, hint);
            return None;
        }
        let text = self.text(key)?;
        if text.value.is_empty() {
            self.problems.error(&text.location, format!("`{}` is empty", self.path(key)), hint);
            return None;
        }
        Some(text)
    }

    /// A list of texts; absent is empty.
    #[must_use]
    pub fn texts(&self, key: &'static str) -> Vec<Located<String>> {
        let Some((value, location)) = self.value(key) else {
            return Vec::new();
        };
        self.list_of(key, value, &location)
    }

    fn list_of(&self, key: &str, value: &DeValue<'_>, location: &Location) -> Vec<Located<String>> {
        let Some(list) = value.as_array() else {
            self.wrong_type(key, location, value, TEXTS);
            return Vec::new();
        };
        self.check_length(&self.path(key), list.len(), location);
        let mut texts = Vec::new();
        for item in list.iter().take(LIST_MAX) {
            let location = self.document.location_of(&item.span());
            match item.get_ref().as_str() {
                Some(text) => texts.push(Located { value: text.to_owned(), location }),
                None => self.wrong_type(key, &location, item.get_ref(), TEXT),
            }
        }
        texts
    }

    fn check_length(&self, path: &str, length: usize, location: &Location) {
        if length > LIST_MAX {
            let what = format!("`{path}` has {length} entries, more than {LIST_MAX}");
            self.problems.error(location, what, "share them out among several");
        }
    }

    /// A list of texts that must be there and must not be empty.
    #[must_use]
    pub fn required_texts(&self, key: &'static str, hint: &str) -> Vec<Located<String>> {
        let present = self.has(key);
        let texts = self.texts(key);
        if !present {
            self.missing(key, hint);
        } else if self.is_empty_list(key) {
            let location = self.location_of_key(key);
            self.problems.error(&location, format!("`{}` is empty", self.path(key)), hint);
        }
        texts
    }

    /// Whether the key is there with an empty list.
    #[must_use]
    pub fn is_empty_list(&self, key: &'static str) -> bool {
        let list = self.table.get(key).and_then(|value| value.get_ref().as_array());
        list.is_some_and(|list| list.is_empty())
    }

    /// Where a key stands, or the table when it does not.
    #[must_use]
    pub fn location_of_key(&self, key: &'static str) -> Location {
        let value = self.table.get(key);
        value
            .map_or_else(|| self.location.clone(), |value| self.document.location_of(&value.span()))
    }

    /// A whole number within bounds, or the default.
    #[must_use]
    pub fn number(&self, key: &'static str, bounds: RangeInclusive<u64>, default: u64) -> u64 {
        let Some((value, location)) = self.value(key) else {
            return default;
        };
        let Some(integer) = value.as_integer() else {
            self.wrong_type(key, &location, value, NUMBER);
            return default;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        if let Some(number) = number.filter(|number| bounds.contains(number)) {
            return number;
        }
        let what = format!(
            "`{}` is {}, outside {} to {}",
            self.path(key),
            integer.as_str(),
            bounds.start(),
            bounds.end()
        );
        self.problems.error(&location, what, format!("leave it out for the default, {default}"));
        default
    }

    /// `true` or `false`; `false` when it is left out.
    #[must_use]
    pub fn flag(&self, key: &'static str) -> bool {
        let Some((value, location)) = self.value(key) else {
            return false;
        };
        value.as_bool().unwrap_or_else(|| {
            self.wrong_type(key, &location, value, FLAG);
            false
        })
    }

    /// A table, if there is one of that name, without a word about it: it does not count as read.
    #[must_use]
    pub fn peek(&self, key: &'static str) -> Option<Self> {
        let value = self.table.get(key)?;
        let table = value.get_ref().as_table()?;
        let location = self.document.location_of(&value.span());
        let (document, problems) = (self.document, self.problems);
        let name = self.path(key);
        Some(Self { document, table, location, name, taken: RefCell::default(), problems })
    }

    /// A table, if the key is there.
    #[must_use]
    pub fn table(&self, key: &'static str) -> Option<Self> {
        let (value, location) = self.value(key)?;
        let Some(table) = value.as_table() else {
            self.wrong_type(key, &location, value, "a table");
            return None;
        };
        Some(self.inner(self.path(key), table, location))
    }

    /// A table that must be there.
    #[must_use]
    pub fn required_table(&self, key: &'static str, hint: &str) -> Option<Self> {
        if !self.has(key) {
            self.taken.borrow_mut().push(key);
            self.missing(key, hint);
            return None;
        }
        self.table(key)
    }

    /// A list of tables (`[[key]]`); absent is empty.
    #[must_use]
    pub fn tables(&self, key: &'static str) -> Vec<Self> {
        let Some((value, location)) = self.value(key) else {
            return Vec::new();
        };
        let Some(list) = value.as_array() else {
            self.wrong_type(key, &location, value, TABLES);
            return Vec::new();
        };
        self.check_length(&self.path(key), list.len(), &location);
        let mut tables = Vec::new();
        for item in list.iter().take(LIST_MAX) {
            let location = self.document.location_of(&item.span());
            match item.get_ref().as_table() {
                Some(table) => tables.push(self.inner(self.path(key), table, location)),
                None => self.wrong_type(key, &location, item.get_ref(), "a table"),
            }
        }
        tables
    }

    /// Every key with its list of texts; for tables whose keys the user chooses.
    #[must_use]
    pub fn lists_by_key(&self) -> Vec<(Located<String>, Vec<Located<String>>)> {
        self.check_length(&self.name, self.table.len(), &self.location);
        let mut lists = Vec::new();
        for (key, value) in self.table.iter().take(LIST_MAX) {
            let name = key.get_ref().to_string();
            let place = self.document.location_of(&value.span());
            let list = self.list_of(&name, value.get_ref(), &place);
            let location = self.document.location_of(&key.span());
            lists.push((Located { value: name, location }, list));
        }
        lists
    }

    fn inner(&self, name: String, table: &'d DeTable<'d>, location: Location) -> Self {
        Self {
            document: self.document,
            table,
            location,
            name,
            taken: RefCell::default(),
            problems: self.problems,
        }
    }

    /// Reports every key that nobody asked for. Call it last.
    pub fn finish(self) {
        let taken = self.taken.borrow();
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if taken.contains(&name) {
                continue;
            }
            let nearest = taken
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, name), *known))
                .min()
                .filter(|(distance, _)| *distance <= 2);
            let hint = match nearest {
                Some((_, known)) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", known_list(&taken)),
            };
            let location = self.document.location_of(&key.span());
            self.problems.error(
                &location,
                format!("`{}` is not a known key", self.path(name)),
                hint,
            );
        }
    }
}

fn type_in_words(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => TEXT,
        DeValue::Integer(_) => NUMBER,
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => FLAG,
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn known_list(taken: &[&str]) -> String {
    let mut known: Vec<String> = taken.iter().map(|key| format!("`{key}`")).collect();
    known.sort();
    known.dedup();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::Problem;
    use super::*;

    /// Reads with `read` and compares what is reported.
    fn check(text: &str, read: impl FnOnce(&TableReader<'_>), expected: &[&str]) {
        let problems = Problems::default();
        let document = Document::new("file", text);
        let table = document.parse(&problems).unwrap();
        read(&document.root(&table, &problems));
        let found: Vec<String> = problems.into_sorted().iter().map(Problem::to_string).collect();
        assert_eq!(found, expected, "{:.80}", text);
    }

    #[test]
    fn a_list_that_is_longer_than_what_is_read_is_an_error_and_not_cut() {
        let list = |name: &str, entry: &str, count: usize| {
            format!("{name} = [{}]", vec![entry; count].join(", "))
        };
        let read = |root: &TableReader<'_>| {
            drop(root.texts("texts"));
            drop(root.tables("tables"));
            drop(root.table("by_key").map(|table| table.lists_by_key()));
        };
        let hint = "\n  hint: share them out among several";
        let error = |name: &str| {
            format!("error: file:1: `{name}` has 100001 entries, more than 100000{hint}")
        };
        check(&list("texts", "\"\"", LIST_MAX), read, &[]);
        check(&list("texts", "\"\"", LIST_MAX + 1), read, &[&error("texts")]);
        check(&list("tables", "{}", LIST_MAX + 1), read, &[&error("tables")]);
        let keys: String = (0..=LIST_MAX).map(|key| format!("k{key} = []\n")).collect();
        check(&format!("[by_key]\n{keys}"), read, &[&error("by_key")]);
    }
}
