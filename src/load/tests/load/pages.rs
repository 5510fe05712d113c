//! Pages of reports in real Chromium: in both schemes and three widths nothing is outside, clipped or on top of something
//! else, and nothing is requested.

use std::path::Path;

use crate::devtools::{Browser, ColorScheme};

const WIDTHS_PX: [u32; 3] = [390, 1_000, 1_600];
/// Largest page in bytes, with all its pictures.
const PAGE_BYTES_MAX: u64 = 500_000;

/// Elements that reach beyond the page.
const OUTSIDE: &str = "[...document.querySelectorAll('body *')].filter(element => \
    element.getBoundingClientRect().right > innerWidth + 1 && element.getBoundingClientRect().width > 0)\
    .map(element => element.outerHTML.slice(0, 120))";
/// Texts of charts that are not inside their charts.
const CLIPPED: &str = "[...document.querySelectorAll('svg.chart')].flatMap(svg => [...svg.querySelectorAll('text')].filter(text => {\
    const box = text.getBBox(), view = svg.viewBox.baseVal;\
    return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1;\
    }).map(text => svg.ariaLabel + ': ' + text.textContent))";
/// Texts of a chart on top of each other; those of marks have a border of their own.
const OVERLAPPING: &str = "[...document.querySelectorAll('svg.chart')].flatMap(svg => {\
    const texts = [...svg.querySelectorAll('text:not(.halo)')].map(text => [text.textContent, text.getBBox()]);\
    return texts.flatMap(([name, one], n) => texts.slice(n + 1).filter(([_, two]) =>\
    Math.min(one.x + one.width, two.x + two.width) - Math.max(one.x, two.x) > 1 &&\
    Math.min(one.y + one.height, two.y + two.height) - Math.max(one.y, two.y) > 3)\
    .map(([other]) => svg.ariaLabel + ': ' + name + ' and ' + other)); })";

/// Checks the page in this file.
#[track_caller]
pub fn check(file: &Path) {
    let bytes = std::fs::metadata(file).expect("a page").len();
    assert!(bytes <= PAGE_BYTES_MAX, "{bytes} bytes");
    let url = format!("file://{}", file.display());
    let mut browser = Browser::start("");
    browser.watch_requests();
    for scheme in [ColorScheme::Light, ColorScheme::Dark] {
        for width_px in WIDTHS_PX {
            browser.emulate(width_px, scheme);
            browser.open(&url);
            // What is folded must fit too.
            browser.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true; }), 0");
            for (what, expression) in [("outside", OUTSIDE), ("clipped", CLIPPED), ("overlapping", OVERLAPPING)] {
                let found = browser.evaluate(expression);
                assert_eq!(found, serde_json::json!([]), "{what} at {width_px} px in {scheme:?}");
            }
            let scrolls = browser.evaluate("document.documentElement.scrollWidth > innerWidth");
            assert_eq!(scrolls, false, "no horizontal scrolling at {width_px} px");
        }
    }
    let background = browser.evaluate("getComputedStyle(document.body).backgroundColor");
    assert_ne!(background, "rgb(255, 255, 255)", "the dark scheme has a dark page");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.contains(&url), "requests are recorded: {requests:?}");
    assert!(requests.iter().all(|request| *request == url || request.starts_with("data:")), "{requests:?}");
}
