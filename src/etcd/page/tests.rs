//! Pages and queries: what is read, what is refused, what is written anew.

use super::*;

fn check(target: &str, expected: Option<&str>) {
    let (path, query) =
        target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let read = Page::from_path(path).and_then(|page| PageRequest::read(page, query).ok());
    assert_eq!(read.map(|request| request.target()).as_deref(), expected, "{target}");
}

#[test]
fn every_page_is_found_by_its_path_and_by_no_other() {
    for page in Page::ALL {
        assert_eq!(Page::from_path(page.path()), Some(*page));
        assert_eq!(Page::ALL[page.index()], *page);
        for other in ["/", "x", "?", "%00", ";a", "//"] {
            assert_eq!(Page::from_path(&format!("{}{other}", page.path())), None);
        }
        assert_eq!(Page::from_path(&page.path().to_uppercase()), None);
        assert_eq!(Page::from_path(&format!("/{}", page.path())), None);
        assert_eq!(Page::from_path(page.path().trim_start_matches('/')), None);
    }
    for path in ["", "*", "/", "/%68ealth", "/x/../health", "/livez/non_learner", "/debug/vars"] {
        assert_eq!(Page::from_path(path), None, "{path}");
    }
}

#[test]
fn a_query_is_written_anew_in_one_order() {
    check("/health", Some("/health"));
    check(
        "/health?serializable=true&exclude=CORRUPT&exclude=NOSPACE",
        Some("/health?exclude=NOSPACE&exclude=CORRUPT&serializable=true"),
    );
    check(
        "/health?serializable=false&exclude=ALARM",
        Some("/health?exclude=ALARM&serializable=false"),
    );
    check(
        "/livez?verbose&exclude=serializable_read",
        Some("/livez?exclude=serializable_read&verbose"),
    );
    check("/readyz?exclude=non_learner", Some("/readyz?exclude=non_learner"));
    check("/readyz/non_learner?verbose", Some("/readyz/non_learner?verbose"));
}

#[test]
fn what_is_not_a_word_of_the_page_is_no_query() {
    for query in [
        "",
        "&",
        "x",
        "verbose",
        "exclude",
        "exclude=",
        "exclude=nospace",
        "exclude=NONE",
        "exclude=NOSPACE,CORRUPT",
        "Exclude=NOSPACE",
        "exclude=NOSPACE&",
        "&exclude=NOSPACE",
        "exclude=NOSPACE&exclude=NOSPACE",
        "exclude=%4eOSPACE",
        "exclude=NOSPACE#",
        "exclude=NOSPACE;x",
        "exclude=serializable_read",
        "serializable",
        "serializable=",
        "serializable=1",
        "serializable=TRUE",
        "serializable=true&serializable=true",
        "serializable=true&serializable=false",
        "token=secret",
        "exclude=NOSPACE?serializable=true",
        "exclude=NOSPACE%26x",
        "exclude=NOSPACE\r\nx: y",
    ] {
        check(&format!("/health?{query}"), None);
    }
    for query in
        ["", "verbose=", "verbose=true", "verbose&verbose", "serializable=true", "exclude=NOSPACE"]
    {
        check(&format!("/readyz?{query}"), None);
        check(&format!("/livez/serializable_read?{query}"), None);
    }
    for query in ["", "verbose", "exclude=serializable_read", "name[]=up"] {
        check(&format!("/metrics?{query}"), None);
        check(&format!("/version?{query}"), None);
    }
    check("/readyz/non_learner?exclude=non_learner", None);
}

#[test]
fn a_refused_query_says_what_the_page_takes() {
    let said = |page| PageRequest::read(page, Some("x")).unwrap_err().to_string();
    assert!(said(Page::Health).contains("exclude=NOSPACE"));
    assert!(said(Page::Readyz).contains("exclude=CHECK and verbose"));
    assert!(said(Page::ReadyzNonLearner).ends_with("may hold verbose, once"));
    assert!(said(Page::Metrics).ends_with("may hold nothing"));
}
