//! The evaluation as one self-contained HTML page, in Chinese: no script, no font, no picture from
//! elsewhere; readable on a phone and in print. The only room with the drawing library.
//!
//! Knows numbers and identifiers only: no case's text is given to it.

use std::collections::BTreeMap;
use std::fmt::Write;

use plotters::prelude::*;
use thiserror::Error;

use crate::evaluation::details::Details;
use crate::evaluation::report::{ACCUSED, Estimate, Report};
use crate::evaluation::suite::SuiteResults;

/// Size of a chart, in pixels; style sheets scale it down on a phone.
const CHART: (u32, u32) = (520, 340);
/// Stands for a figure there is not.
const MISSING: &str = "—";
const BLUE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const ORANGE: RGBColor = RGBColor(0xc7, 0x5b, 0x12);
const STYLE: &str = "body{font:16px/1.6 system-ui,'PingFang SC','Microsoft YaHei','Noto Sans CJK SC',sans-serif;\
max-width:60rem;margin:0 auto;padding:1rem;color:#1c1c1c;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #ccc}\
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0;font-size:.92rem}\
th,td{border:1px solid #ccc;padding:.25rem .6rem;text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{background:#f3f3f3}\
td.hit{background:#e3f0e3;font-weight:600}td.miss{background:#f8e2d6}\
.note{color:#555;font-size:.9rem;overflow-wrap:anywhere}code{word-break:break-all;font-size:.85rem}\
svg{max-width:100%;height:auto}th:first-child,td:first-child{position:sticky;left:0}\
td:first-child{background:#fff}\
@media(max-width:40rem){table{font-size:.82rem}th,td{padding:.2rem .4rem}svg{min-width:28rem}}\
@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}table,svg{break-inside:avoid}\
.wide{overflow:visible}}";

/// What a page is made of.
pub struct Page<'a> {
    /// Heading.
    pub title: String,
    /// Name, version and digest of the model.
    pub model: [&'a str; 3],
    /// What the figures are measured on, and whatever else must stand beside them.
    pub notes: Vec<String>,
    /// Chinese names by code.
    pub names: BTreeMap<&'a str, &'a str>,
    /// Figures on the evaluated cases.
    pub report: &'a Report,
    /// Other models' figures on the same cases: heading and report.
    pub others: Vec<(&'a str, &'a Report)>,
    /// What became of the suites.
    pub suites: Option<&'a SuiteResults>,
    /// Loss and validation macro-F1 of each epoch, for a version that was just trained.
    pub history: Vec<(f32, f32)>,
    /// The surest mistakes.
    pub mistakes: Vec<Mistake<'a>>,
}

/// A wrong answer. Names the case, never its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake<'a> {
    /// Identifier of the case.
    pub id: &'a str,
    /// True type's code.
    pub label: &'a str,
    /// Predicted type's code.
    pub predicted: &'a str,
    /// Its probability.
    pub confidence: f32,
}

/// A chart that could not be drawn.
#[derive(Debug, Error)]
#[error("chart: {0}")]
pub struct ChartError(String);

impl Page<'_> {
    /// The page.
    ///
    /// # Errors
    /// [`ChartError`] when the drawing library fails.
    pub fn to_html(&self) -> Result<String, ChartError> {
        let mut out = Out(String::new());
        let [name, version, digest] = self.model.map(escape);
        out.put(format!(
            "<!doctype html><html lang=\"zh-CN\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{0}</title><style>{STYLE}</style></head><body><h1>{0}</h1>\
             <p>模型 {name} {version}<br><code>{digest}</code></p>\
             <p class=\"note\">共 {1} 条案例。结果只是建议，由人决定；括号内为 95% 自助法区间。{2}</p>",
            escape(&self.title),
            self.report.n_cases,
            self.accusation_note()
        ));
        for note in &self.notes {
            out.put(format!("<p class=\"note\">{}</p>", escape(note)));
        }
        self.headline(&mut out);
        self.types(&mut out);
        self.confusion(&mut out);
        if let Some(details) = &self.report.details {
            self.probabilities(details, &mut out)?;
            self.review(details, &mut out)?;
            self.grounds(details, &mut out);
            slices(details, &mut out);
        }
        if let Some(suites) = self.suites {
            criticism(suites, self.has_levels(suites), &mut out);
            swaps(suites, self.has_levels(suites), &mut out);
        }
        if self.history.len() > 1 {
            out.put("<h2>学习曲线</h2>");
            out.put(self.learning_curve()?);
        }
        self.mistakes(&mut out);
        out.put("</body></html>\n");
        Ok(out.0)
    }

    fn zh(&self, code: &str) -> String {
        escape(self.names.get(code).copied().unwrap_or(code))
    }

    /// What an accusation means, for a model that knows it.
    fn accusation_note(&self) -> &'static str {
        match self.report.types.iter().any(|it| it.code == ACCUSED) {
            true => "“造谣诽谤类”表示需要核查，不表示内容不实。",
            false => "",
        }
    }

    /// Whether levels mean anything: to the model, and on these cases.
    fn has_levels(&self, suites: &SuiteResults) -> bool {
        suites.has_levels && self.report.level_kappa.is_some()
    }

    fn headline(&self, out: &mut Out) {
        let names = ["宏平均 F1", "准确率", "突发召回率", "误指造谣率", "敏感度 kappa", "类型 ECE"];
        let mut head = vec!["指标".to_owned(), "本模型".to_owned()];
        head.extend(self.others.iter().map(|it| escape(it.0)));
        let mut rows = Vec::new();
        for (idx, zh) in names.into_iter().enumerate() {
            let mut row = vec![zh.to_owned(), show(self.report.figures()[idx].1)];
            row.extend(self.others.iter().map(|it| show(it.1.figures()[idx].1)));
            rows.push(row);
        }
        let upper = |it: &Report| number(it.false_accusation_upper);
        let brier = |it: &Report| number(it.details.as_ref().and_then(|it| it.brier));
        for (zh, of) in
            [("误指造谣率单侧 95% 上界", &upper as &dyn Fn(&Report) -> String), ("Brier", &brier)]
        {
            let mut row = vec![zh.to_owned(), of(self.report)];
            row.extend(self.others.iter().map(|it| of(it.1)));
            rows.push(row);
        }
        // Of a type the models lack, or of levels no case has, nothing is said.
        rows.retain(|row| row[1..].iter().any(|it| it != MISSING));
        out.put("<h2>总览</h2>");
        out.table(&head, &rows);
        if let (Some(coverage), Some(size)) = (self.report.set_coverage, self.report.mean_set_size)
        {
            out.put(format!("<p>预测集：含正确类型 {coverage:.3}，平均 {size:.2} 类。</p>"));
        }
    }

    fn types(&self, out: &mut Out) {
        out.put("<h2>各类型</h2>");
        let mut head = ["类型", "条数", "精确率", "召回率", "F1"].map(str::to_owned).to_vec();
        head.extend(self.others.iter().map(|it| format!("{} F1", escape(it.0))));
        let rows: Vec<Vec<String>> = self
            .report
            .types
            .iter()
            .map(|it| {
                let mut row = vec![self.zh(&it.code), it.support.to_string()];
                for (place, value) in [it.precision, it.recall, it.f1].into_iter().enumerate() {
                    let interval = it.intervals.map_or(String::new(), |all| {
                        format!(" ({:.3}–{:.3})", all[place][0], all[place][1])
                    });
                    row.push(format!("{value:.3}{interval}"));
                }
                let f1_of = |other: &Report| {
                    other.types.iter().find(|other| other.code == it.code).map(|it| it.f1)
                };
                row.extend(self.others.iter().map(|other| number(f1_of(other.1))));
                row
            })
            .collect();
        out.table(&head, &rows);
    }

    fn confusion(&self, out: &mut Out) {
        out.put("<h2>混淆矩阵</h2><p class=\"note\">行：实际；列：模型所判。</p><div class=\"wide\"><table><tr><th></th>");
        for it in &self.report.types {
            out.put(format!("<th>{}</th>", self.zh(&it.code)));
        }
        out.put("</tr>");
        for (row_idx, row) in self.report.confusion.iter().enumerate() {
            out.put(format!("<tr><td>{}</td>", self.zh(&self.report.types[row_idx].code)));
            for (idx, n) in row.iter().enumerate() {
                let class = match (idx == row_idx, *n) {
                    (true, _) => " class=\"hit\"",
                    (false, 0) => "",
                    (false, _) => " class=\"miss\"",
                };
                out.put(format!("<td{class}>{n}</td>"));
            }
            out.put("</tr>");
        }
        out.put("</table></div>");
    }

    fn probabilities(&self, details: &Details, out: &mut Out) -> Result<(), ChartError> {
        out.put("<h2>概率可信吗</h2><p class=\"note\">每点为一组把握相近的案例；落在斜线上，说九成就有九成对。</p>");
        let points = details.reliability.iter().map(|it| (it.confidence, it.accuracy)).collect();
        out.put(chart(
            "模型的把握",
            "实际正确的比例",
            (0.0..1.0, 0.0..1.0),
            &[
                Series { points: vec![(0.0, 0.0), (1.0, 1.0)], color: ORANGE, dots: false },
                Series { points, color: BLUE, dots: true },
            ],
        )?);
        Ok(())
    }

    fn review(&self, details: &Details, out: &mut Out) -> Result<(), ChartError> {
        out.put("<h2>复核规则</h2>");
        let policy = details.policy;
        let risk = policy.risk.map_or("—".into(), |it| format!("{:.1}%", 100.0 * it));
        out.put(format!(
            "<p>现行规则：{:.1}% 直接分派，其余由人先看；直接分派的案例中类型有误 {risk}。</p>\
             <p class=\"note\">曲线：按把握从高到低放行时，放行比例与其中的错误率；必须由人看的案例从不放行。</p>",
            100.0 * policy.coverage
        ));
        let points: Vec<(f64, f64)> =
            details.risk_coverage.iter().filter_map(|it| Some((it.coverage, it.risk?))).collect();
        let top = points.iter().map(|it| it.1).fold(0.05, f64::max) * 1.1;
        let here = policy.risk.map(|risk| (policy.coverage, risk)).into_iter().collect();
        out.put(chart(
            "直接分派的比例",
            "其中的错误率",
            (0.0..1.0, 0.0..top),
            &[
                Series { points, color: BLUE, dots: false },
                Series { points: here, color: ORANGE, dots: true },
            ],
        )?);
        Ok(())
    }

    fn grounds(&self, details: &Details, out: &mut Out) {
        let found = details.grounds.iter().filter(|it| it.support > 0);
        let rows: Vec<Vec<String>> = found
            .map(|it| vec![self.zh(&it.code), it.support.to_string(), number(it.average_precision)])
            .collect();
        if !rows.is_empty() {
            out.put("<h2>敏感理由</h2>");
            out.table(&["理由", "条数", "平均精确率 AP"].map(str::to_owned), &rows);
        }
    }

    fn learning_curve(&self) -> Result<String, ChartError> {
        let at = |idx: usize| (idx + 1) as f64;
        let f1 = self.history.iter().enumerate().map(|(idx, it)| (at(idx), f64::from(it.1)));
        let f1: Vec<(f64, f64)> = f1.collect();
        chart(
            "轮次",
            "验证集宏平均 F1",
            (1.0..at(self.history.len() - 1), 0.0..1.0),
            &[Series { points: f1, color: BLUE, dots: true }],
        )
    }

    fn mistakes(&self, out: &mut Out) {
        if self.mistakes.is_empty() {
            return;
        }
        out.put("<h2>把握最大的错误</h2><p class=\"note\">只列编号；请按编号在案例文件中查看原文，先看标签是否标错。</p>");
        let rows: Vec<Vec<String>> = self
            .mistakes
            .iter()
            .map(|it| {
                vec![
                    escape(it.id),
                    self.zh(it.label),
                    self.zh(it.predicted),
                    format!("{:.3}", it.confidence),
                ]
            })
            .collect();
        out.table(&["案例", "标签", "模型所判", "把握"].map(str::to_owned), &rows);
    }
}

/// The page as it grows.
struct Out(String);

impl Out {
    fn put(&mut self, html: impl AsRef<str>) {
        self.0.push_str(html.as_ref());
    }

    /// Cells are HTML already.
    fn table(&mut self, head: &[String], rows: &[Vec<String>]) {
        self.put("<div class=\"wide\"><table><tr>");
        for it in head {
            self.put(format!("<th>{it}</th>"));
        }
        self.put("</tr>");
        for row in rows {
            self.put("<tr>");
            for it in row {
                self.put(format!("<td>{it}</td>"));
            }
            self.put("</tr>");
        }
        self.put("</table></div>");
    }
}

fn slices(details: &Details, out: &mut Out) {
    out.put("<h2>分组</h2>");
    let kind = |it: &str| match it {
        "length" => "长度（字）".to_owned(),
        "source" => "来源".to_owned(),
        "register" => "语体".to_owned(),
        other => escape(other),
    };
    let rows: Vec<Vec<String>> = details
        .slices
        .iter()
        .map(|it| {
            vec![
                format!("{} {}", kind(it.kind), escape(&it.value)),
                it.n.to_string(),
                format!("{:.3}", it.accuracy),
                it.macro_f1.map_or("—".into(), |it| format!("{it:.3}")),
            ]
        })
        .collect();
    out.table(&["分组", "条数", "准确率", "宏平均 F1"].map(str::to_owned), &rows);
}

fn criticism(suites: &SuiteResults, has_levels: bool, out: &mut Out) {
    let Some(it) = suites.criticism() else { return };
    let named = |it: &[String]| match it {
        [] => "0 条".to_owned(),
        ids => format!("{} 条（{}）", ids.len(), escape(&ids.join("、"))),
    };
    let raised = match has_levels {
        true => format!("；敏感级别偏高 {}", named(&it.raised)),
        false => String::new(),
    };
    out.put(format!(
        "<h2>保护批评</h2><p>正当批评 {} 条：被判为造谣 {}{raised}。</p>",
        it.n,
        named(&it.accused)
    ));
}

fn swaps(suites: &SuiteResults, has_levels: bool, out: &mut Out) {
    let accuses = suites.criticism().is_some();
    // A column the model has nothing to say in is left out.
    let kept = |cells: [String; 7]| -> Vec<String> {
        let is_told = [true, true, has_levels, has_levels, accuses, true, true];
        cells.into_iter().zip(is_told).filter(|it| it.1).map(|it| it.0).collect()
    };
    out.put("<h2>换人不换事</h2><p class=\"note\">同一句话只换所说的人，答案应当不变；此处为最大变化。</p>");
    let rows: Vec<Vec<String>> = suites
        .dimensions
        .iter()
        .map(|(name, it)| {
            kept([
                escape(dimension_zh(name)),
                it.templates.to_string(),
                number(it.max_score.map(f64::from)),
                it.max_level.map_or(MISSING.into(), |it| it.to_string()),
                number(it.max_accusation.map(f64::from)),
                format!("{:.3}", it.max_probability),
                it.type_changes.to_string(),
            ])
        })
        .collect();
    let head = ["所换", "句数", "敏感分", "级别", "造谣概率", "所判类型概率", "类型改变"];
    out.table(&kept(head.map(str::to_owned)), &rows);
}

/// Chinese name of a kind of swap.
pub fn dimension_zh(name: &str) -> &str {
    match name {
        "age" => "年龄",
        "dialect" => "方言",
        "disability" => "残障",
        "ethnicity" => "民族",
        "gender" => "性别",
        "job" => "职业",
        "region" => "地域",
        other => other,
    }
}

struct Series {
    points: Vec<(f64, f64)>,
    color: RGBColor,
    dots: bool,
}

fn chart(
    x: &str,
    y: &str,
    ranges: (std::ops::Range<f64>, std::ops::Range<f64>),
    all: &[Series],
) -> Result<String, ChartError> {
    let fail = |it: String| ChartError(it);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, CHART).into_drawing_area();
        root.fill(&WHITE).map_err(|it| fail(it.to_string()))?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(ranges.0, ranges.1)
            .map_err(|it| fail(it.to_string()))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .light_line_style(WHITE)
            .label_style(("sans-serif", 13))
            .axis_desc_style(("sans-serif", 14))
            .draw()
            .map_err(|it| fail(it.to_string()))?;
        for it in all {
            chart
                .draw_series(LineSeries::new(it.points.iter().copied(), it.color.stroke_width(2)))
                .map_err(|it| fail(it.to_string()))?;
            if it.dots {
                let dot = |&point: &(f64, f64)| Circle::new(point, 4, it.color.filled());
                chart.draw_series(it.points.iter().map(dot)).map_err(|it| fail(it.to_string()))?;
            }
        }
        root.present().map_err(|it| fail(it.to_string()))?;
    }
    // On a phone it scrolls rather than shrinks to what nobody can read.
    Ok(format!("<div class=\"wide\">{svg}</div>"))
}

fn show(it: Option<Estimate>) -> String {
    it.map_or(MISSING.into(), |it| format!("{:.3} ({:.3}–{:.3})", it.value, it.low, it.high))
}

fn number(it: Option<f64>) -> String {
    it.map_or(MISSING.into(), |it| format!("{it:.3}"))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for it in text.chars() {
        // Writing to a string cannot fail.
        let _ = match it {
            '&' => out.write_str("&amp;"),
            '<' => out.write_str("&lt;"),
            '>' => out.write_str("&gt;"),
            '"' => out.write_str("&quot;"),
            other => out.write_char(other),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::LabelSet;
    use crate::evaluation::details::Detail;
    use crate::evaluation::report::Outcome;
    use crate::evaluation::suite::{Answer, Protection, spread};

    /// Forty answers; without levels and grounds, as of own labels, or with both.
    fn answers(is_graded: bool) -> Vec<(Outcome, Detail)> {
        (0..40)
            .map(|it| {
                let confidence = 0.5 + it as f32 / 100.0;
                let outcome = Outcome {
                    label: it % 2,
                    predicted: usize::from(it % 3 == 0),
                    confidence,
                    set: Some((1, true)),
                    levels: is_graded.then_some((it % 4, (it + 1) % 4)),
                };
                let detail = Detail {
                    probabilities: vec![confidence, 1.0 - confidence],
                    score: 0.5,
                    grounds: Some(vec![(confidence, is_graded && it % 2 == 0), (0.5, false)]),
                    is_held: false,
                    is_reviewed: confidence < 0.6,
                    slices: vec![("source", "<b>来源</b>".to_owned())],
                };
                (outcome, detail)
            })
            .collect()
    }

    fn report(types: [&str; 2], answers: &[(Outcome, Detail)]) -> Report {
        let outcomes: Vec<Outcome> = answers.iter().map(|it| it.0).collect();
        let mut report = Report::new(&outcomes, &LabelSet::new(types).unwrap(), 4);
        report.details = Some(Details::new(answers, 2, ["life", "wide"].into_iter()));
        report
    }

    fn suites(protection: Protection, accusation: Option<f32>) -> SuiteResults {
        let answer =
            Answer { type_idx: 0, probabilities: vec![0.5, 0.5], score: 0.5, level: 1, accusation };
        let swaps = spread("t", "age", &[("甲".to_owned(), answer)]).into_iter().collect();
        SuiteResults::new(protection, swaps)
    }

    #[test]
    fn what_the_model_does_not_know_is_not_spoken_of() {
        let words = ["造谣", "正当批评", "敏感", "级别", "突发", "<td>life", "<td>wide"];
        let html = |report: &Report, suites: &SuiteResults| {
            let page = Page {
                title: "报告".into(),
                model: ["m", "1", "sha256:0"],
                notes: vec![],
                names: BTreeMap::new(),
                report,
                others: vec![],
                suites: Some(suites),
                history: vec![],
                mistakes: vec![],
            };
            page.to_html().unwrap()
        };
        let own = report(["水务", "交通"], &answers(false));
        // The cases have no levels, or the model does not know any.
        let suites_of_own = suites(Protection::default(), None);
        for suites in [suites_of_own.clone(), suites_of_own.without_levels()] {
            let html = html(&own, &suites);
            for absent in words {
                assert!(!html.contains(absent), "{absent}");
            }
            assert!(html.contains("宏平均 F1") && html.contains("所判类型概率"));
        }
        let ours = report(["emergency", ACCUSED], &answers(true));
        let protection = Protection { n: 2, ..Protection::default() };
        let html = html(&ours, &suites(protection, Some(0.5)));
        let (last, told) = words.split_last().unwrap();
        for present in told {
            assert!(html.contains(present), "{present}");
        }
        // A ground that no case has.
        assert!(!html.contains(last), "{last}");
    }

    #[test]
    fn the_page_is_whole_alone_and_escaped() {
        let report = report(["problem", ACCUSED], &answers(true));
        let protection = Protection { n: 2, accused: vec!["c-1".into()], raised: vec![] };
        let suites = suites(protection, Some(0.5));
        let page = Page {
            title: "评估 <报告>".into(),
            model: ["m", "1", "sha256:0"],
            notes: vec!["拆分 <a>".into()],
            names: [("problem", "问题类")].into(),
            report: &report,
            others: vec![("基线", &report)],
            suites: Some(&suites),
            history: vec![(1.0, 0.5), (0.5, 0.75)],
            mistakes: vec![Mistake {
                id: "a&b",
                label: "problem",
                predicted: "disputed_claim",
                confidence: 0.9,
            }],
        };
        let html = page.to_html().unwrap();
        assert_eq!(html.matches("<svg").count(), 3);
        for expected in [
            "评估 &lt;报告&gt;",
            "&lt;b&gt;来源&lt;/b&gt;",
            "a&amp;b",
            "c-1",
            "问题类",
            "name=\"viewport\"",
            "@media print",
        ] {
            assert!(html.contains(expected), "{expected}");
        }
        // Nothing is fetched: the only address is the name of SVG.
        let addresses = html.matches("http").count();
        assert_eq!(addresses, html.matches("http://www.w3.org/2000/svg").count());
        assert!(!html.contains("<script") && !html.contains("src="));
        let opened = |tag: &str| html.matches(&format!("<{tag}")).count();
        for tag in ["table", "tr", "svg", "div"] {
            assert_eq!(opened(tag), html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(html.contains(&format!("{:.3}", report.types[0].f1)));
    }
}
