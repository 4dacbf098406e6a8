// What is dropped or chosen becomes scans, and each is sent file by file.

import { ask, GONE, read, Trouble } from "./parts.js";

const AT_ONCE = 4;
const MOST_FILES = 50000;

/** The scans in what was dropped: each folder, zip or NIfTI is one, loose files are one together. */
export async function scansDropped(transfer) {
  // Asked for at once: the browser forgets them when this function first waits.
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const found = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const entries = found.filter((each) => each && !(each instanceof File));
  const scans = [];
  const loose = found.filter((each) => each instanceof File);
  for (const entry of entries) {
    if (entry.isDirectory) scans.push({ name: entry.name, files: await filesBelow(entry, `${entry.name}/`) });
    else loose.push(await fileOf(entry));
  }
  return [...scans, ...scansOf(loose)];
}

/** The scans in what was chosen with a dialogue. */
export function scansChosen(files) {
  const all = [...files];
  const isFolder = all.some((file) => file.webkitRelativePath);
  if (!isFolder) return scansOf(all);
  const name = all[0].webkitRelativePath.split("/")[0];
  return [{ name, files: all.filter(isWanted).map((file) => ({ path: file.webkitRelativePath, file })) }];
}

function scansOf(files) {
  const whole = files.filter((file) => /\.(zip|nii|nii\.gz|mha|nrrd)$/i.test(file.name));
  const slices = files.filter((file) => !whole.includes(file) && isWanted(file));
  const scans = whole.map((file) => ({ name: file.name, files: [{ path: file.name, file }] }));
  if (slices.length === 1) scans.push({ name: slices[0].name, files: [{ path: slices[0].name, file: slices[0] }] });
  if (slices.length > 1) scans.push({ name: "dropped files", files: slices.map((file) => ({ path: `dropped files/${file.name}`, file })) });
  return scans;
}

function isWanted(file) {
  return !file.name.startsWith(".") && !/^(thumbs\.db|desktop\.ini)$/i.test(file.name);
}

function fileOf(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, () => reject(new Trouble(`${entry.name} cannot be read by the browser.`))));
}

async function filesBelow(folder, path) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, () => reject(new Trouble(`${folder.name} cannot be read by the browser.`))));
    if (entries.length === 0) return found;
    for (const entry of entries) {
      if (entry.isDirectory) found.push(...(await filesBelow(entry, `${path}${entry.name}/`)));
      else {
        const file = await fileOf(entry);
        if (isWanted(file)) found.push({ path: path + file.name, file });
      }
      if (found.length > MOST_FILES) throw new Trouble(`${folder.name} holds more than ${MOST_FILES} files. Drop the folder of one scan.`);
    }
  }
}

/** Send a scan. `tell` hears how much of it is there, 0 to 1; `signal` stops it. */
export async function send(scan, tell, signal) {
  const files = scan.files.map(({ path, file }) => [path.slice(-1024), file.size]);
  const upload = await ask("/api/uploads", { method: "POST", body: { name: scan.name, files } });
  const total = Math.max(1, files.reduce((sum, [, bytes]) => sum + bytes, 0));
  const sent = new Array(files.length).fill(0);
  let next = 0;
  const put = async () => {
    while (next < files.length) {
      const index = next++;
      await putFile(`/api/uploads/${upload.id}/${index}`, scan.files[index].file, signal, (bytes) => {
        sent[index] = bytes;
        tell(sent.reduce((sum, each) => sum + each, 0) / total);
      });
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, files.length) }, put));
    return await ask(`/api/uploads/${upload.id}/done`, { method: "POST", body: {} });
  } catch (error) {
    next = files.length;
    ask(`/api/uploads/${upload.id}`, { method: "DELETE" }).catch(() => {});
    throw error;
  }
}

function putFile(address, file, signal, tell) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address);
    request.upload.addEventListener("progress", (event) => tell(event.loaded));
    request.addEventListener("load", () => {
      try {
        tell(file.size);
        resolve(read(request.status, request.responseText));
      } catch (error) {
        reject(error);
      }
    });
    request.addEventListener("error", () => reject(new Trouble(GONE)));
    request.addEventListener("abort", () => reject(new Trouble("Sending was cancelled.")));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
