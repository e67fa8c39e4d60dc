// Words of what lies on something else, is cut, or spills out of its cell.
const found = [];
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5;
for (const chart of document.querySelectorAll("svg.chart")) {
  const texts = [...chart.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
  texts.forEach(([one, a], i) => texts.slice(0, i).forEach(([two, b]) => {
    if (meet(a, b)) found.push(`${chart.getAttribute("aria-label")}: "${one}" on "${two}"`);
  }));
  const frame = chart.closest(".box") ?? chart.closest("figure");
  const edge = frame.getBoundingClientRect();
  for (const [word, box] of texts)
    if (box.left < edge.left - 1 || (frame.matches("figure") && box.right > edge.right + 1)) found.push(`"${word}" is cut`);
}
const blocks = [...document.querySelectorAll("main > *, article > *, section > *, .figures > *, .facts > *, .filters > *")]
  .filter((block) => block.getClientRects().length && !block.matches("script"));
for (const one of blocks) for (const two of one.parentElement.children)
  if (one !== two && blocks.includes(two) && meet(one.getBoundingClientRect(), two.getBoundingClientRect()))
    found.push(`<${one.tagName} ${one.className}> on <${two.tagName} ${two.className}>`);
for (const cell of document.querySelectorAll("th, td"))
  if (cell.getClientRects().length && cell.scrollWidth > cell.clientWidth + 1) found.push(`cell: ${cell.textContent.trim()}`);
return found;
