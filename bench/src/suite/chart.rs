//! The chart for the README: two rows of bars as SVG. Pure; draws what `results.json` says, and nothing of its own.

use std::fmt::Write as _;

use super::Results;

const WIDTH: usize = 760;
const BAR: usize = 20;
const GAP: usize = 6;
const LABEL: usize = 190;
const FIGURE: usize = 110;

struct Bar {
    label: String,
    value: f64,
    ours: bool,
}

pub fn draw(results: &Results) -> String {
    let proxy = bars(results, "proxy", 0, "proxy CPU us/request", |_| true);
    let etcd = bars(results, "etcd", 1, "requests/s", |row| {
        row.first().is_some_and(|calls| calls == "range")
    });
    let mut body = String::new();
    let mut top = 10;
    for (title, bars) in [
        ("CPU per request of the proxy alone, microseconds (less is better)", proxy),
        ("Range calls per second with a real etcd, mutual TLS (more is better)", etcd),
    ] {
        if !bars.is_empty() {
            top = draw_bars(&mut body, top, title, &bars);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" viewBox=\"0 0 {WIDTH} {top}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// The rows of a section's table that have a number in that column.
fn bars(
    results: &Results,
    section: &str,
    label: usize,
    column: &str,
    wanted: impl Fn(&[String]) -> bool,
) -> Vec<Bar> {
    let Some(section) = results.sections.get(section) else {
        return Vec::new();
    };
    let column = section.table.head.iter().position(|cell| cell == column);
    let rows = section.table.rows.iter().filter(|row| wanted(row));
    rows.filter_map(|row| {
        let label = row.get(label)?.clone();
        let value = row.get(column?)?.parse().ok()?;
        let ours = label.starts_with("ringfence");
        Some(Bar { label, value, ours })
    })
    .collect()
}

/// Gives where the next one may begin.
fn draw_bars(body: &mut String, top: usize, title: &str, bars: &[Bar]) -> usize {
    let largest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    writeln!(body, "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 16)
        .unwrap();
    let mut y = top + 28;
    for bar in bars {
        let length = bar.value / largest * (WIDTH - LABEL - FIGURE) as f64;
        let color = if bar.ours { "#1f77b4" } else { "#b0b0b0" };
        let baseline = y + BAR - 5;
        writeln!(
            body,
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>",
            LABEL - 8,
            bar.label
        )
        .unwrap();
        writeln!(body, "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{color}\"/>").unwrap();
        let end = LABEL as f64 + length + 6.0;
        writeln!(body, "<text x=\"{end:.1}\" y=\"{baseline}\">{}</text>", bar.value).unwrap();
        y += BAR + GAP;
    }
    y + 14
}
