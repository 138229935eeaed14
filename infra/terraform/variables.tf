variable "name" {
  description = "Prefix of every name. infra/work-pools/ecs-gpu.json expects the default."
  type        = string
  default     = "yolov7-pipeline"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,30}$", var.name))
    error_message = "name: 3 to 31 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "region" {
  description = "AWS region, for example eu-central-1."
  type        = string
}

variable "tags" {
  description = "Tags of every resource, in addition to Project."
  type        = map(string)
  default     = {}
}

variable "vpc_id" {
  description = "The VPC of all resources."
  type        = string
}

variable "private_subnet_ids" {
  description = "Subnets without public addresses, in two zones or more, that reach the internet or AWS's endpoints."
  type        = list(string)

  validation {
    condition     = length(var.private_subnet_ids) >= 2
    error_message = "private_subnet_ids: RDS asks for subnets in two availability zones."
  }
}

variable "gpu_instance_type" {
  description = "EC2 type of the GPU pool; infra/work-pools/ecs-gpu.json asks for one GPU and 14 GiB of a g5.xlarge."
  type        = string
  default     = "g5.xlarge"
}

variable "gpu_max_instances" {
  description = "Maximum number of GPU instances; idle ones are stopped, down to none."
  type        = number
  default     = 2
}

variable "gpu_disk_gib" {
  description = "Root disk of a GPU instance: images, and the clone and data of the runs."
  type        = number
  default     = 200
}

variable "database_class" {
  description = "RDS instance class."
  type        = string
  default     = "db.t4g.medium"
}

variable "database_multi_az" {
  description = "Whether a second zone holds a standby."
  type        = bool
  default     = true
}

variable "database_backup_days" {
  description = "Days to which the database can be taken back."
  type        = number
  default     = 14
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects can be brought back."
  type        = number
  default     = 90
}

variable "run_secret_arns" {
  description = "Environment variable of a run -> ARN of the Secrets Manager secret with its value (MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING)."
  type        = map(string)
  default     = {}
}
