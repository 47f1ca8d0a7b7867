//! Tables of Markdown documents.

/// The rows of every table whose first column has that title: their cells.
pub(crate) fn rows<'a>(text: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            inside = false;
            continue;
        };
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        inside |= cells[0] == title;
        if inside && cells[0] != title && !cells[0].starts_with("--") {
            rows.push(cells);
        }
    }
    rows
}
