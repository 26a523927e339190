// Runs in the answer to POST /session: the tab's secret goes where only this tab finds it again.
"use strict";
sessionStorage.setItem("witsd.tab", document.body.dataset.tab);
location.replace("/");
