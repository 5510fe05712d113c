//! Colours and style sheet of all charts and pages, light and dark.

/// Colour of a series: one for each edge, and some for what has none. The colours differ in lightness too, after the
/// palette of Okabe and Ito for all kinds of colour vision, darkened where it has less than 3:1 against white.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChartTone {
    /// Calls over HTTP, in blue.
    Http,
    /// Unary calls of gRPC, in green.
    Grpc,
    /// Streams of gRPC, in purple.
    GrpcStream,
    /// Commands over RESP, in orange.
    Resp,
    /// Scheduler in the process of the harness, and what belongs to no edge.
    Ink,
    /// Designs on Redis without Hotpool.
    Redis,
    /// Tables in PostgreSQL without Hotpool.
    Postgres,
    /// Bare servers, as limits of the others.
    Bare,
}

impl ChartTone {
    /// Colours for series without an edge, in the order of their use.
    pub const SEQUENCE: [Self; 8] =
        [Self::Http, Self::Resp, Self::Grpc, Self::Postgres, Self::Redis, Self::GrpcStream, Self::Ink, Self::Bare];

    /// Class of the style sheet.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Http => "t-http",
            Self::Grpc => "t-grpc",
            Self::GrpcStream => "t-stream",
            Self::Resp => "t-resp",
            Self::Ink => "t-ink",
            Self::Redis => "t-redis",
            Self::Postgres => "t-postgres",
            Self::Bare => "t-bare",
        }
    }
}

/// Style sheet of a chart. A page has it once, a file of its own in itself.
pub const CHART_STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1c1e;--muted:#5b5b62;--grid:#dedee3;--http:#0072b2;--grpc:#00805d;\
--stream:#a83f86;--resp:#c24e00;--redis:#946000;--postgres:#6a51a3;--bare:#6c6c74}\
@media screen and (prefers-color-scheme:dark){:root{--paper:#16171a;--ink:#ececef;--muted:#a9a9b2;--grid:#35363c;--http:#56b4e9;\
--grpc:#2bc59a;--stream:#e58bc4;--resp:#ff8f57;--redis:#e5ab3d;--postgres:#b9a5e6;--bare:#92929b}}\
.chart{font:12px system-ui,sans-serif;background:var(--paper)}.chart text{fill:var(--ink)}.chart .title{font-size:14px;font-weight:600}\
.chart .muted{fill:var(--muted)}.chart .grid{stroke:var(--grid)}.chart .end{text-anchor:end}.chart .middle{text-anchor:middle}\
.t-http{--tone:var(--http)}.t-grpc{--tone:var(--grpc)}.t-stream{--tone:var(--stream)}.t-resp{--tone:var(--resp)}\
.t-ink{--tone:var(--ink)}.t-redis{--tone:var(--redis)}.t-postgres{--tone:var(--postgres)}.t-bare{--tone:var(--bare)}\
.chart .line{fill:none;stroke:var(--tone);stroke-width:2;stroke-linejoin:round}.chart .thin{stroke-width:1.25}\
.chart .dashed{stroke-dasharray:5 3}.chart text.name{fill:var(--tone);font-weight:600}.chart .dot{fill:var(--tone)}\
.chart .hollow{fill:var(--paper);stroke:var(--tone);stroke-width:1.5}.chart .bar{fill:var(--tone)}\
.chart .mark{stroke:var(--ink);stroke-dasharray:2 3}.chart .leader{stroke:var(--tone);opacity:.4}\
.chart .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}";
