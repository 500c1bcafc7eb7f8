import { color } from "/static/chart.js";

/**
 * Show each price, and its change since the first one in percent.
 *
 * tbody: gets a row for each name.
 * points: an array of objects, each { name: price, ... }, with the same names.
 */
export function fillTable(tbody, points) {
  Object.entries(points.at(-1) ?? {}).forEach(([name, price], number) => {
    const row = tbody.rows[number] ?? addRow(tbody, name, number);
    const change = (price / points[0][name] - 1) * 100;
    const arrow = change < 0 ? "▼ −" : "▲ +";
    row.cells[1].textContent = price.toFixed(2);
    row.cells[2].textContent = `${arrow}${Math.abs(change).toFixed(2)} %`;
  });
}

function addRow(tbody, name, number) {
  const row = tbody.insertRow();
  const header = document.createElement("th");
  header.scope = "row";
  header.style.borderLeft = `0.5rem solid ${color(number)}`;
  header.textContent = name;
  row.append(header);
  row.insertCell();
  row.insertCell();
  return row;
}
