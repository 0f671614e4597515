export class PairView {
  constructor() {}
  open() {}
  close() {}
  mayLeave() { return true; }
  key() { return false; }
}
