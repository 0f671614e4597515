export class Landmarks {
  constructor() { this.active = false; }
  load() {} clear() {} draw() {} refit() {} setActive(on) { this.active = on; } mayLeave() { return true; } key() { return false; } down() { return null; } up() {}
}
